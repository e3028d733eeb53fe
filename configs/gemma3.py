"""Gemma 3 270M (Gemma Team 2025), the smallest published: five local layers, one global, norms around each half.

    python -m fmjax.train --config=configs/gemma3.py --workdir=runs/gemma3 \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/gemma3/tokenizer.json

Half a million tokens a step, for eight chips or alike. `--config=configs/gemma3.py:tiny` learns the Python standard
library on two CPU cores in about a minute.
"""

from ml_collections import ConfigDict


def get_config(size="270m"):
    tiny = {"270m": False, "tiny": True}[size]
    length = 256 if tiny else 4096
    model = {"name": "gemma3", "vocab_size": 262_144, "dtype": "bfloat16", "remat": "full"}
    if tiny:
        model = {
            "name": "gemma3", "num_layers": 4, "hidden_size": 128, "intermediate_size": 384, "num_heads": 4,
            "num_kv_heads": 2, "head_dim": 32, "max_length": length, "window": 64,
            "layer_pattern": ("local", "global"),
        }  # fmt: skip
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 300 if tiny else 100_000, "batch_size": 8 if tiny else 128, "log_every": 10,
            "eval_every": 0 if tiny else 1000, "eval_batches": 8, "checkpoint_every": 1000,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": model,
        "objective": {"name": "causal_lm"},
        "data": {"source": "builtin", "sequence_length": length, "tokenizer": "train:2048" if tiny else "train:32768"},
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3 if tiny else 3e-4, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 30 if tiny else 2000, "final_fraction": 0.1},
        },
    })  # fmt: skip
