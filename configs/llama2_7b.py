"""LLaMA 2 7B (Touvron et al. 2023), its published shape and optimizer, for 64 chips of TPU v5p.

    python -m fmjax.train --config=configs/llama2_7b.py --workdir=runs/llama2_7b \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/llama2/tokenizer.model
    python -m fmjax.plan --config=configs/llama2_7b.py --topology=v5p:4x4x4

4M tokens a step. Parameters, gradients and optimizer state are split over all chips.

Planned for v5p:4x4x4 (2026-11-26, JAX 0.10.2, libtpu 0.0.42.1): 57 of 96 GiB a chip, 97.7% of the compiled FLOPs
useful, a step of at least 6.26 s, limited by compute; not run on such a slice yet.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 500_000, "batch_size": 1024, "accumulate_steps": 4, "log_every": 10, "eval_every": 1000,
            "eval_batches": 8, "checkpoint_every": 500, "keep_every": 10_000,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": {
            "name": "llama", "num_layers": 32, "hidden_size": 4096, "intermediate_size": 11_008, "num_heads": 32,
            "num_kv_heads": 32, "vocab_size": 32_000, "max_length": 4096, "norm_eps": 1e-5, "rope_theta": 10_000.0,
            "dtype": "bfloat16",
            "remat": "save_named:q,k,v,attention_residuals,attention_heads,attention_out,mlp_gate,mlp_up",
        },
        "objective": {"name": "causal_lm"},
        "data": {"source": "builtin", "sequence_length": 4096, "tokenizer": "train:32000"},
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.1,
            "clip_norm": 1.0, "schedule": {"name": "cosine", "warmup_steps": 2000, "final_fraction": 0.1},
        },
    })  # fmt: skip
