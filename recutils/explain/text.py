"""An explanation in words (chapter 06)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recutils.explain.explanation import Explanation


def sentence_template(found: "Explanation") -> tuple[str, list[str]]:
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
        if source == "habits" and found.household_count:
            count, of = put(str(found.household_count), str(found.household_baskets))
            said.append(f"you had it in {count} of your {of} baskets so far")
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
        count, of = put(str(found.item_count), str(found.n_baskets))
        said.append(f"{count} of {of} baskets held it")
    return f"We offer {{0}}: {'; '.join(said)}.", facts
