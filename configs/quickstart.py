"""A small LLaMA-style decoder learns Python from the standard library on this machine: no download, no account.

    python -m fmjax.train --config=configs/quickstart.py --workdir=runs/quickstart

Two CPU cores: at most five minutes; a machine that is too slow for 700 steps in them is given fewer. Ends with samples
in `runs/quickstart/samples.txt` and the held-out bits per byte, beside what `gzip -9` and `xz` need for the same
documents.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 700, "max_minutes": 3.0, "batch_size": 8, "log_every": 10, "eval_every": 250, "eval_batches": 16,
            "sample_every": 250, "checkpoint_every": 250, "final_tasks": ("heldout",),
        },
        "mesh": {"data": -1},
        "model": {
            "name": "llama", "num_layers": 4, "hidden_size": 128, "intermediate_size": 384, "num_heads": 2,
            "num_kv_heads": 2, "max_length": 256, "tie_embeddings": True, "unroll": 4,
        },
        "objective": {
            "name": "causal_lm", "sample_prompts": ("", "def main(", "class Stack:\n    "), "sample_tokens": 150,
            "sample_temperature": 0.7,
        },
        "data": {"source": "builtin", "sequence_length": 256, "tokenizer": "train:4096"},
        "optimizer": {
            "name": "muon", "learning_rate": 1e-2, "weight_decay": 0.01,
            "schedule": {"name": "linear", "warmup_steps": 30},
        },
    })  # fmt: skip
