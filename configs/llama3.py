"""LLaMA 3.2 1B (Grattafiori et al. 2024), the smallest published LLaMA 3: grouped queries, LLaMA 3.1's rotary scaling.

    python -m fmjax.train --config=configs/llama3.py --workdir=runs/llama3_1b \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/llama3

Half a million tokens a step, for eight chips or more. `--config=configs/llama3.py:8b` is LLaMA 3.1 8B, and
`--config=configs/llama3.py:tiny` learns the Python standard library on two CPU cores in about a minute.
"""

from ml_collections import ConfigDict

# layers, width, MLP, heads, key-value heads, tied embeddings, factor of the rotary scaling
SIZES = {
    "tiny": (4, 128, 384, 4, 2, True, None),
    "1b": (16, 2048, 8192, 32, 8, True, 32.0),
    "8b": (32, 4096, 14336, 32, 8, False, 8.0),
}


def get_config(size="1b"):
    num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, tied, factor = SIZES[size]
    tiny = size == "tiny"
    length = 256 if tiny else 8192
    scaling = {
        "name": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_length": 8192,
    }  # fmt: skip
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 300 if tiny else 100_000, "batch_size": 8 if tiny else 64, "log_every": 10,
            "eval_every": 0 if tiny else 1000, "eval_batches": 8, "checkpoint_every": 1000,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": {
            "name": "llama", "num_layers": num_layers, "hidden_size": hidden_size,
            "intermediate_size": intermediate_size, "num_heads": num_heads, "num_kv_heads": num_kv_heads,
            "vocab_size": None if tiny else 128_256, "max_length": length if tiny else 131_072,
            "rope_theta": 10_000.0 if tiny else 500_000.0, "rope_scaling": None if factor is None else scaling,
            "tie_embeddings": tied, "dtype": "float32" if tiny else "bfloat16", "remat": "none" if tiny else "full",
        },
        "objective": {"name": "causal_lm"},
        "data": {"source": "builtin", "sequence_length": length, "tokenizer": "train:2048" if tiny else "train:32768"},
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3 if tiny else 3e-4, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 30 if tiny else 2000, "final_fraction": 0.1},
        },
    })  # fmt: skip
