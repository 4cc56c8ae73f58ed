"""Why this item? Explanations of recommendations (chapter 06, which also tests whether they are true).

An explanation gives each part (an item of the basket, a group of features) a number: how much of the score is owed
to it. Most here are exact; which are not, their docstrings say."""

from recutils.explain.attribution import (
    basket_contributions,
    basket_value_function,
    feature_group,
    occlusion,
    perturb_basket,
    tree_shap,
)
from recutils.explain.explanation import Explanation, ExplanationContext, explain
from recutils.explain.text import sentence_template

__all__ = [
    "Explanation",
    "ExplanationContext",
    "basket_contributions",
    "basket_value_function",
    "explain",
    "feature_group",
    "occlusion",
    "perturb_basket",
    "sentence_template",
    "tree_shap",
]
