"""Frequent itemsets and association rules (chapters 04 and 04b)."""

from recutils.rules.association import association_rules, frequent_itemsets, mine_itemsets
from recutils.rules.matching import (
    add_group_columns,
    antecedent_matrix,
    matching_rules,
    prune_generalised_rules,
    rule_hits,
)
from recutils.rules.measures import MEASURES, interest_measures, pair_counts, shrunk_log_lift
from recutils.rules.partitions import frequent_in_partitions

__all__ = [
    "MEASURES",
    "add_group_columns",
    "antecedent_matrix",
    "association_rules",
    "frequent_in_partitions",
    "frequent_itemsets",
    "interest_measures",
    "matching_rules",
    "mine_itemsets",
    "pair_counts",
    "prune_generalised_rules",
    "rule_hits",
    "shrunk_log_lift",
]
