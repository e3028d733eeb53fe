"""LLaMA 3.1 405B (Grattafiori et al. 2024), its published shape and optimizer, for 2,048 chips of TPU v5p.

    python -m fmjax.train --config=configs/llama3_405b.py --workdir=runs/llama3_405b \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/llama3
    python -m fmjax.plan --config=configs/llama3_405b.py --topology=v5p:8x16x16

16M tokens a step in rows of 8,192.

Planned for v5p:8x16x16 (2026-11-26, JAX 0.10.2, libtpu 0.0.42.1): 79 of 96 GiB a chip, 96.5% of the compiled FLOPs
useful, a step of at least 46.69 s, limited by compute; not run on such a slice yet.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 1_200_000, "batch_size": 2048, "accumulate_steps": 8, "log_every": 10, "eval_every": 1000,
            "eval_batches": 8, "checkpoint_every": 500, "keep_every": 10_000,
        },
        "mesh": {"data": 1, "fsdp": -1, "tensor": 8, "replicate": ("norm",)},
        "model": {
            "name": "llama", "num_layers": 126, "hidden_size": 16_384, "intermediate_size": 53_248, "num_heads": 128,
            "num_kv_heads": 8, "vocab_size": 128_256, "max_length": 8192, "norm_eps": 1e-5, "rope_theta": 500_000.0,
            "dtype": "bfloat16",
            "remat": "save_named:q,k,v,attention_residuals,attention_heads,mlp_gate,mlp_up",
        },
        "objective": {"name": "causal_lm", "chunk_size": 512},
        "data": {"source": "builtin", "sequence_length": 8192, "tokenizer": "train:32768"},
        "optimizer": {
            "name": "adamw", "learning_rate": 8e-5, "b1": 0.9, "b2": 0.95, "eps": 1e-05, "weight_decay": 0.1,
            "clip_norm": 1.0, "schedule": {"name": "cosine", "warmup_steps": 8000, "final_fraction": 0.1},
        },
    })  # fmt: skip
