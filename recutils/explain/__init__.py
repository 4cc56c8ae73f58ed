"""Why this item? Explanations of recommendations, and measures of whether they are true (chapter 06).

An explanation gives each part (an item of the basket, a field of the text, a source of evidence) a number: how much
of the score is owed to it. Most here are exact; which are not, their docstrings say."""

from recutils.explain.attribution import (
    FAMILIES,
    Worth,
    all_but_one,
    all_subsets,
    basket_contributions,
    basket_worth,
    family,
    occlusion,
    shapley_values,
    tree_shap,
    walk,
    without_items,
)
from recutils.explain.explanation import Counterfactual, Explanation, Looked, Shop, counterfactual, explain
from recutils.explain.text import BINDING, CONNECTIVES, RewriteRefused, check_rewrite, in_words, rewrite

__all__ = [
    "BINDING",
    "CONNECTIVES",
    "FAMILIES",
    "Counterfactual",
    "Explanation",
    "Looked",
    "RewriteRefused",
    "Shop",
    "Worth",
    "all_but_one",
    "all_subsets",
    "basket_contributions",
    "basket_worth",
    "check_rewrite",
    "counterfactual",
    "explain",
    "family",
    "in_words",
    "occlusion",
    "rewrite",
    "shapley_values",
    "tree_shap",
    "walk",
    "without_items",
]
