"""Three replicas of the service behind HAProxy while one is killed or all are renewed: what is lost (chapter 10b).

`make bench`, or `python tests/benchmarks/balancer.py`, with Debian's haproxy. The version is the book's own, built
where the cache has none. Clients on the same machine ask for recommendations at a steady pace. Results go to
data/benchmarks/balancer.json.
"""

import http.client
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "deploy")]
from replicas import Replica, replicated  # noqa: E402

KEPT = ROOT / "data" / "benchmarks" / "balancer.json"
PACE, SECONDS, LIMIT = 60, 20, 20.0


def ask_once(address: str, keys: list[str], bodies: list[bytes], number: int) -> tuple[str, float]:
    """One recommendation over a connection of its own: its status (or the error's name), and milliseconds."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    try:
        headers = {"X-API-Key": keys[number % len(keys)], "Content-Type": "application/json"}
        connection.request("POST", "/recommend", bodies[number % len(bodies)], headers)
        answer = connection.getresponse()
        answer.read()
        said = str(answer.status)
    except (OSError, http.client.HTTPException) as error:
        said = type(error).__name__
    finally:
        connection.close()
    return said, 1000 * (time.perf_counter() - start)


def ask_steadily(
    addresses: list[str],
    keys: list[str],
    bodies: list[bytes],
    seconds: float,
    a_second: float,
    event: Callable[[], None] | None = None,
) -> pd.DataFrame:
    """So many requests a second, whatever the answers do, to the addresses in turn; `event` begins after a quarter.

    A row a request: `said`, `ms`. Late starts count from when they were due.
    """
    first = time.perf_counter()

    def one(number: int) -> tuple[str, float]:
        due = first + number / a_second
        time.sleep(max(0.0, due - time.perf_counter()))
        late = 1000 * (time.perf_counter() - due)
        said, ms = ask_once(addresses[number % len(addresses)], keys, bodies, number)
        return said, ms + late

    with ThreadPoolExecutor(64) as pool, ThreadPoolExecutor(1) as other:
        happens = other.submit(lambda: (time.sleep(seconds / 4), event() if event else None))
        rows = list(pool.map(one, range(int(seconds * a_second))))
        happens.result()
    return pd.DataFrame(rows, columns=["said", "ms"])


def summary(rows: pd.DataFrame) -> dict[str, float]:
    """What became of the requests: how many, answered, refused (429, 503), lost (all else), p50 and p99 of answers."""
    good, refused = rows["said"] == "200", rows["said"].isin(["429", "503"])
    answers = rows.loc[good, "ms"]
    return {
        "requests": len(rows),
        "answered": int(good.sum()),
        "refused": int(refused.sum()),
        "lost": int((~good & ~refused).sum()),
        "p50, ms": round(float(answers.median()), 1),
        "p99, ms": round(float(answers.quantile(0.99)), 1),
    }


def renew_all(replicas: list[Replica]) -> None:
    """One after the other: a rolling update."""
    for replica in replicas:
        replica.renew()


def measure(folder: Path, keys: list[str], bodies: list[bytes], say: Callable[[str], None] = print) -> list[dict]:
    """All cases, one after the other: a row each."""
    rows = []
    for balancer, balance in (("none: clients take turns", ""), ("by load", "leastconn"), ("by key", "hdr(X-API-Key)")):
        for case, event in (("one is killed", lambda them: them[1].stop()), ("all are renewed", renew_all)):
            with replicated(folder, balance or "leastconn") as (front, replicas):
                addresses = [front] if balance else [replica.address for replica in replicas]
                seconds = SECONDS if case == "one is killed" else 3 * SECONDS
                asked = ask_steadily(addresses, keys, bodies, seconds, PACE, partial(event, replicas))
            rows.append({"balancer": balancer, "case": case, "a second": PACE} | summary(asked))
            if not rows[-1]["answered"]:
                raise SystemExit(f"Nothing was answered: {asked['said'].value_counts().to_dict()}.")
            say(str(rows[-1]))
        if balance:
            with replicated(folder, balance, rate=LIMIT) as (front, _):
                asked = ask_steadily([front], keys[:1], bodies, SECONDS, 4 * LIMIT)
            case = f"one key of {LIMIT:.0f} a second asks for {4 * LIMIT:.0f}"
            rows.append({"balancer": balancer, "case": case, "a second": int(4 * LIMIT)} | summary(asked))
            say(str(rows[-1]))
    return rows


def main() -> None:
    """The book's own version, three keys, baskets of the test weeks."""
    from recutils import data
    from recutils.service import auth
    from recutils.service.build import build_book_shop

    split = data.time_split(data.load_store())
    ids = split.items["item_id"].astype(str).to_numpy()
    some = np.random.default_rng(0).choice(len(split.test.matrix.indptr) - 1, 200, replace=False)
    baskets = [ids[split.test.matrix[row].indices].tolist() for row in some]
    bodies = [json.dumps({"basket": basket, "k": 5}).encode() for basket in baskets]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build_book_shop(folder, auth.load_settings(folder).secret)
        keys = [auth.create_key(folder, f"till {n}") for n in range(3)]
        rows = measure(folder, keys, bodies)
    KEPT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
