"""A config of the study beside it: a model's continuations of prompts become positive (VADER), near to the model.

`positive.py:MODEL,BETA`: MODEL is what the run begins with and its reference, BETA the weight of the KL to it. The
objective is E[r - BETA * KL] of whole replies, with no other scale: advantages are rewards less their group's mean.
"""

import pathlib

from ml_collections import ConfigDict

from fmjax.interop.loading import model_section


def get_config(argument):
    model, _, beta = argument.rpartition(",")
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 32, "batch_size": 32, "init_from": model, "log_every": 1, "checkpoint_every": 8, "keep_last": 1,
            "eval_every": -1, "sample_every": -1,
        },
        "mesh": {"data": 1},
        "model": model_section(model),
        "weights": {"name": "lora", "rank": 16, "alpha": 32.0, "patterns": ("blocks/.*kernel$",)},
        "objective": {
            "name": "dr_grpo", "rewards": {"positive": {"lexicon": "vader"}}, "num_samples": 4, "max_new_tokens": 8,
            "reference": model, "kl_weight": float(beta), "kl_in": "reward", "kl_estimator": "k1", "decode_rows": 32,
        },
        "data": {
            "name": "chat_prompts", "sequence_length": 6, "heldout_fraction": 0.0,
            "chat_template": str(pathlib.Path(__file__).parent / "plain.jinja"),
        },
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-4, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "constant", "warmup_steps": 3},
        },
    })  # fmt: skip
