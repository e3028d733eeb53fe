"""Qwen 3 0.6B (Yang et al. 2025), the smallest published: a norm on queries and keys, heads of 128.

    python -m fmjax.train --config=configs/qwen3.py --workdir=runs/qwen3 \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/qwen3/tokenizer.json

Half a million tokens a step, for eight chips or alike. `--config=configs/qwen3.py:tiny` learns the Python standard
library on two CPU cores in about a minute.
"""

from ml_collections import ConfigDict


def get_config(size="0.6b"):
    tiny = {"0.6b": False, "tiny": True}[size]
    length = 256 if tiny else 4096
    model = {"name": "qwen3", "vocab_size": 151_936, "dtype": "bfloat16", "remat": "full"}
    if tiny:
        model = {
            "name": "qwen3", "num_layers": 4, "hidden_size": 128, "intermediate_size": 384, "num_heads": 4,
            "num_kv_heads": 2, "head_dim": 48, "max_length": length, "rope_theta": 10_000.0,
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
