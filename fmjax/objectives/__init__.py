"""Objectives: pure loss functions `(apply_fn, params, batch, key, train) -> {name: (sum, weight)}`.

A metric is its sum over the batch and the weight to divide it by, once all parts of all batches are added up. One with
several terms of different weights is a tuple of such pairs, whose means are added: the masked language model's loss a
masked token and its next-sentence loss a row, say. "loss" is what training minimises.
"""

from fmjax.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "causal_lm": "fmjax.objectives.causal_lm:CausalLM",
        "classification": "fmjax.objectives.classification:Classification",
        "masked_lm": "fmjax.objectives.masked_lm:MaskedLM",
        "seq2seq": "fmjax.objectives.seq2seq:Seq2Seq",
    },
)
