"""Why this item? Explanations of recommendations (chapter 06, which also tests whether they are true).

An explanation gives each part (an item of the basket, a group of features) a number: how much of the score is owed
to it. Most here are exact; which are not, their docstrings say."""

from recutils.explain.attribution import (
    FEATURE_GROUPS,
    ValueFunction,
    basket_contributions,
    basket_value_function,
    feature_group,
    leave_one_out_masks,
    occlusion,
    perturb_basket,
    tree_shap,
)
from recutils.explain.explanation import Explanation, ExplanationContext, explain
from recutils.explain.text import sentence_template

__all__ = [
    "FEATURE_GROUPS",
    "Explanation",
    "ExplanationContext",
    "ValueFunction",
    "basket_contributions",
    "basket_value_function",
    "explain",
    "feature_group",
    "leave_one_out_masks",
    "occlusion",
    "perturb_basket",
    "sentence_template",
    "tree_shap",
]
