"""Frequent itemsets and association rules (chapter 04)."""

from recutils.rules.firing import firing, for_items, left_sides, with_groups
from recutils.rules.measures import MEASURES, interest_measures, pair_counts, shrunk_log_lift
from recutils.rules.mining import association_rules, frequent_itemsets, mine

__all__ = [
    "MEASURES",
    "association_rules",
    "firing",
    "for_items",
    "frequent_itemsets",
    "interest_measures",
    "left_sides",
    "mine",
    "pair_counts",
    "shrunk_log_lift",
    "with_groups",
]
