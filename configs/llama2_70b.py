"""LLaMA 2 70B (Touvron et al. 2023), its published shape and optimizer, for 512 chips of TPU v5p.

    python -m fmjax.train --config=configs/llama2_70b.py --workdir=runs/llama2_70b \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/llama2/tokenizer.model
    python -m fmjax.plan --config=configs/llama2_70b.py --topology=v5p:8x8x8

4M tokens a step.

Planned for v5p:8x8x8 (2026-11-26, JAX 0.10.2, libtpu 0.0.42.1): 70 of 96 GiB a chip, 98.8% of the compiled FLOPs
useful, a step of at least 7.74 s, limited by compute; not run on such a slice yet.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 500_000, "batch_size": 1024, "accumulate_steps": 2, "log_every": 10, "eval_every": 1000,
            "eval_batches": 8, "checkpoint_every": 500, "keep_every": 10_000,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": {
            "name": "llama", "num_layers": 80, "hidden_size": 8192, "intermediate_size": 28_672, "num_heads": 64,
            "num_kv_heads": 8, "vocab_size": 32_000, "max_length": 4096, "norm_eps": 1e-5, "rope_theta": 10_000.0,
            "dtype": "bfloat16",
            "remat": "save_named:q,k,v,attention_residuals,attention_heads,attention_out,mlp_gate,mlp_up",
        },
        "objective": {"name": "causal_lm", "chunk_size": 512},
        "data": {"source": "builtin", "sequence_length": 4096, "tokenizer": "train:32000"},
        "optimizer": {
            "name": "adamw", "learning_rate": 1.5e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-05, "weight_decay": 0.1,
            "clip_norm": 1.0, "schedule": {"name": "cosine", "warmup_steps": 2000, "final_fraction": 0.1},
        },
    })  # fmt: skip
