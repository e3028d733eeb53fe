"""Objectives: pure loss functions that return sums and weights."""

from fmjax.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "causal_lm": "fmjax.objectives.causal_lm:CausalLM",
        "classification": "fmjax.objectives.classification:Classification",
    },
)
