"""An explanation in words, and a rewrite that cannot add a fact (chapter 06)."""

import json
import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from recutils.explain.explanation import Explanation


def in_words(found: "Explanation") -> tuple[str, list[str]]:
    """A template with places {0}, {1}, ... and the measured facts that belong there.

    Of habits, rules and the open basket the two strongest speak, if they speak for the item; where none does, how
    many baskets held it.
    """
    facts: list[str] = [found.name]

    def put(*values: str) -> list[str]:
        facts.extend(values)
        return [f"{{{n}}}" for n in range(len(facts) - len(values), len(facts))]

    said = []
    sources = list(found.evidence) or ["the open basket", "rules"]
    for source in [s for s in sources if not found.evidence or found.evidence[s] > 0]:
        if source == "habits" and found.bought:
            number, of = put(str(found.bought), str(found.visits))
            said.append(f"you had it in {number} of your {of} baskets so far")
        elif source == "rules" and found.rules and found.rules[0]["lift"] > 1:
            rule = found.rules[0]
            left, share, lift = put(" and ".join(rule["if"]), f"{rule['confidence']:.0%}", f"{rule['lift']:.1f}")
            said.append(f"of the baskets with {left}, {share} hold it, {lift} times as many as usual")
        elif source == "the open basket" and found.basket and found.basket[0][2] > 0:
            (name,) = put(found.basket[0][1])
            said.append(f"{name} in your basket speaks for it")
        if len(said) == 2:
            break
    if not said:
        number, of = put(str(found.sold), str(found.baskets))
        said.append(f"{number} of {of} baskets held it")
    return f"We offer {{0}}: {'; '.join(said)}.", facts


class RewriteRefused(ValueError):
    """A rewritten sentence that may not be shown; says why."""


# Words that a rewrite may add or leave out: they bind, and claim nothing.
BINDING = """a also an and as because for here in is it its may maybe our perhaps please since so that the then there
this to too we well which with you your"""


CONNECTIVES = frozenset(BINDING.split())


def check_rewrite(text: str, template: str, facts: Sequence[str]) -> str:
    """A rewritten template, filled with the facts. Raises RewriteRefused for anything that adds, drops or moves one.

    Each place {0}, {1}, ... must come once and in order, and between two places the same words must stand as in the
    template, in the same order, but for `CONNECTIVES` and punctuation: no number, product, attribute or claim can
    slip in, and none can change its role, since no other word can.
    """
    if len(text) > 2 * len(template):
        raise RewriteRefused("it is more than twice as long")
    parts, wanted = (re.split(r"(\{\d+\})", t) for t in (text, template))
    if parts[1::2] != wanted[1::2]:
        raise RewriteRefused(f"its facts stand as {' '.join(parts[1::2]) or 'none'}, not as in the template")
    strange = re.search(r"[^A-Za-z\s.,;:'’!?()-]", " ".join(parts[::2]))
    if strange:
        raise RewriteRefused(f"it holds {strange[0]!r}, which is not in the evidence")
    for part, want in zip(parts[::2], wanted[::2], strict=True):
        said, due = ([w for w in re.findall(r"[a-z]+", t.lower()) if w not in CONNECTIVES] for t in (part, want))
        if said != due:
            new = [w for w in said if w not in due]
            raise RewriteRefused(f"it says {new[0]!r} there" if new else f"it does not say {' '.join(due)!r} there")
    return "".join(facts[int(p[1:-1])] if n % 2 else p for n, p in enumerate(parts)).strip()


def rewrite(found: "Explanation", timeout: float = 10.0) -> tuple[str, str | None]:
    """The sentence in other words by an OpenAI-compatible endpoint, and None; or as it was, and why.

    Address, key and model come from `RECUTILS_LLM_URL` (up to and with /v1), `RECUTILS_LLM_KEY`, `RECUTILS_LLM_MODEL`.
    The endpoint sees the template only: no fact, no product, no household leaves the shop. Never raises for what the
    endpoint does; a key is not sent over plain http, except to this machine itself.
    """
    url = os.environ.get("RECUTILS_LLM_URL", "")
    if not url:
        return found.sentence, "no endpoint is set (RECUTILS_LLM_URL)"
    template, facts = in_words(found)
    ask = "Say it in plain, friendly words. Keep {0}, {1}, ... once each, in order. Add no claim. Answer with text."
    body = {
        "model": os.environ.get("RECUTILS_LLM_MODEL", "default"),
        "messages": [{"role": "system", "content": ask}, {"role": "user", "content": template}],
        "temperature": 0.3,
        "max_tokens": 120,
    }
    try:
        address = httpx.URL(url)
        if address.scheme != "https" and address.host not in ("127.0.0.1", "localhost", "::1"):
            raise RewriteRefused("its address is not https")
        key = os.environ.get("RECUTILS_LLM_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        until, answer = time.monotonic() + timeout, b""
        address_of = f"{url.rstrip('/')}/chat/completions"
        with httpx.stream("POST", address_of, json=body, headers=headers, timeout=timeout) as response:
            response.raise_for_status()
            for part in response.iter_bytes():
                answer += part
                if len(answer) > 65536 or time.monotonic() > until:
                    raise RewriteRefused("its answer is too long, or too long in coming")
        text = json.loads(answer)["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise RewriteRefused("its answer holds no text")
        return check_rewrite(text, template, facts), None
    except RewriteRefused as error:
        return found.sentence, f"the rewrite was refused: {error}"
    except httpx.HTTPStatusError as error:
        return found.sentence, f"the endpoint answered {error.response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return found.sentence, f"the endpoint did not answer ({type(error).__name__})"
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return found.sentence, "the endpoint's answer was not in the expected form"
