"""A small decoder learns to answer with digits of its prompt from nothing but a reward written in Python (REINFORCE).

    python -m fmjax.train --config=configs/reinforce_tiny.py --workdir=runs/reinforce_tiny

The reward is the share of a reply's characters that are digits of the prompt: 1 of "213" after "123=". It is
0.07 in the tenth step, and of the likeliest replies to held-out prompts (`eval/reward`) 0.64 after 100 steps and 0.78
after 200; `train/logprob_difference` is 0 at every step that is logged. Two CPU cores of an AMD EPYC under a load of 5
from other work, nothing compiled before: 151 seconds, 94 of processor time (2026-11-29).
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 200, "batch_size": 256, "log_every": 10, "eval_every": 100, "checkpoint_every": 100},
        "mesh": {"data": -1},
        "model": {
            "name": "llama", "num_layers": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4,
            "max_length": 16, "tie_embeddings": True, "init_std": 0.1,
        },
        "objective": {
            "name": "reinforce", "reward": "fmjax.objectives.rewards:digits_of_prompt", "num_samples": 8,
            "max_new_tokens": 3, "decode_rows": 256,
        },
        "data": {
            "name": "prompts", "source": "fmjax.data.prompts:digit_strings", "sequence_length": 5,
            "tokenizer": "bytes", "heldout_fraction": 0.1,
        },
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3, "schedule": {"name": "constant"},
        },
    })  # fmt: skip
