"""Mistral 7B (Jiang et al. 2023): grouped queries, and a sliding window of 4,096 beyond which its cache never grows.

    python -m fmjax.train --config=configs/mistral.py --workdir=runs/mistral_7b \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/mistral/tokenizer.model

A million tokens a step, for 64 chips or alike. `--config=configs/mistral.py:tiny` learns the Python standard library on
two CPU cores in about a minute, with a window of 64.
"""

from ml_collections import ConfigDict


def get_config(size="7b"):
    tiny = {"7b": False, "tiny": True}[size]
    length = 256 if tiny else 8192
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 300 if tiny else 500_000, "batch_size": 8 if tiny else 128, "log_every": 10,
            "eval_every": 0 if tiny else 1000, "eval_batches": 8, "checkpoint_every": 1000,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": {
            "name": "llama", "num_layers": 4 if tiny else 32, "hidden_size": 128 if tiny else 4096,
            "intermediate_size": 384 if tiny else 14_336, "num_heads": 4 if tiny else 32,
            "num_kv_heads": 2 if tiny else 8, "vocab_size": None if tiny else 32_000,
            "max_length": length if tiny else 32_768, "window": 64 if tiny else 4096,
            "dtype": "float32" if tiny else "bfloat16", "remat": "none" if tiny else "full",
        },
        "objective": {"name": "causal_lm"},
        "data": {"source": "builtin", "sequence_length": length, "tokenizer": "train:2048" if tiny else "train:32000"},
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3 if tiny else 3e-4, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 30 if tiny else 2000, "final_fraction": 0.1},
        },
    })  # fmt: skip
