"""An explanation in words (chapter 06)."""

from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recutils.explain.explanation import Explanation

MINIMUM_EFFECT = {"habits": 0.9, "rules": 0.1}  # on a ranker's score: from here on 8 in 10 reasons hold (chapter 06)


def sentence_template(
    found: "Explanation", minimum_effect: Mapping[str, float] | None = None, shown: int = 0
) -> tuple[str, list[str]]:
    """A template with places {0}, {1}, ... and the measured facts that belong there.

    Of habits, rules and the open basket the two strongest speak, if what they add is above 0 and not below their
    `minimum_effect`, and, of the basket, if the offer would not be among the first `shown` without the item named.
    Where none speaks, how often the household buys it, or how many baskets held it.
    """
    facts: list[str] = [found.name]
    sources = found.evidence or {"the open basket": inf, "rules": inf}
    effects = sources | {"the open basket": found.basket[0][2] if found.basket else 0.0}
    falls = not shown or not found.basket_ranks or found.basket_ranks[0] > max(shown, found.rank or 0)

    def put(*values: str) -> list[str]:
        facts.extend(values)
        return [f"{{{n}}}" for n in range(len(facts) - len(values), len(facts))]

    said = []
    least = minimum_effect or {}
    for source in [s for s, v in effects.items() if min(v, sources.get(s, 0)) > 0 and v >= least.get(s, 0)]:
        if source == "habits" and found.household_count:
            count, of = put(str(found.household_count), str(found.household_baskets))
            said.append(f"you had it in {count} of your {of} baskets so far")
        elif source == "rules" and found.rules and found.rules[0]["lift"] > 1:
            rule = found.rules[0]
            left, share, lift = put(" and ".join(rule["if"]), f"{rule['confidence']:.0%}", f"{rule['lift']:.1f}")
            said.append(f"of the baskets with {left}, {share} hold it, {lift} times as many as usual")
        elif source == "the open basket" and falls:
            (name,) = put(found.basket[0][1])
            said.append(f"{name} in your basket speaks for it")
        if len(said) == 2:
            break
    if not said and found.household_count > 2:
        count, of = put(str(found.household_count), str(found.household_baskets))
        said.append(f"you often buy this, in {count} of your {of} baskets so far")
    elif not said:
        count, of = put(str(found.item_count), str(found.n_baskets))
        said.append(f"{count} of {of} baskets held it")
    return f"We offer {{0}}: {'; '.join(said)}.", facts
