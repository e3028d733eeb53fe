"""LLaMA 3.1 8B (Grattafiori et al. 2024) with its context of 128K tokens, for 128 chips of TPU v5p.

    python -m fmjax.train --config=configs/llama3_8b.py --workdir=runs/llama3_8b_128k \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/llama3
    python -m fmjax.plan --config=configs/llama3_8b.py --topology=v5p:4x4x8

The stage of long documents: 4M tokens a step in rows of 131,072, each row split over the `sequence` axis.
`configs/llama3.py:8b` is the same model at 8K.

Planned for v5p:4x4x8 (2026-11-26, JAX 0.10.2, libtpu 0.0.42.1): 67 of 96 GiB a chip, 88.8% of the compiled FLOPs
useful, a step of at least 11.91 s, limited by compute; not run on such a slice yet.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 20_000, "batch_size": 32, "accumulate_steps": 2, "log_every": 10, "eval_every": 1000,
            "eval_batches": 8, "checkpoint_every": 500, "keep_every": 10_000,
        },
        "mesh": {"data": 1, "fsdp": -1, "sequence": 8},
        "model": {
            "name": "llama", "num_layers": 32, "hidden_size": 4096, "intermediate_size": 14_336, "num_heads": 32,
            "num_kv_heads": 8, "vocab_size": 128_256, "max_length": 131_072, "norm_eps": 1e-5, "rope_theta": 500_000.0,
            "rope_scaling": {
                "name": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_length": 8192,
            },
            "dtype": "bfloat16",
            "remat": "save_named:q,k,v,attention_residuals,attention_heads,attention_out,mlp_gate,mlp_up",
        },
        "objective": {"name": "causal_lm", "chunk_size": 1024},
        "data": {"source": "builtin", "sequence_length": 131072, "tokenizer": "train:32768"},
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-5, "b1": 0.9, "b2": 0.95, "eps": 1e-05, "weight_decay": 0.1,
            "clip_norm": 1.0, "schedule": {"name": "cosine", "warmup_steps": 200, "final_fraction": 0.1},
        },
    })  # fmt: skip
