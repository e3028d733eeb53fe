"""Mistral 7B (Jiang et al. 2023): grouped queries and a sliding window of 4,096, for 256 chips of TPU v6e.

    python -m fmjax.train --config=configs/mistral_7b.py --workdir=runs/mistral_7b \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/mistral/tokenizer.model
    python -m fmjax.plan --config=configs/mistral_7b.py --topology=v6e:16x16

4M tokens a step in rows of 8,192. `configs/mistral.py` is the same model for fewer chips.

Planned for v6e:16x16 (2026-11-26, JAX 0.10.2, libtpu 0.0.42.1): 29 of 31 GiB a chip, 96.9% of the compiled FLOPs
useful, a step of at least 0.87 s, limited by compute; not run on such a slice yet.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 500_000, "batch_size": 512, "accumulate_steps": 2, "log_every": 10, "eval_every": 1000,
            "eval_batches": 8, "checkpoint_every": 500, "keep_every": 10_000,
        },
        "mesh": {"data": 1, "fsdp": -1},
        "model": {
            "name": "llama", "num_layers": 32, "hidden_size": 4096, "intermediate_size": 14_336, "num_heads": 32,
            "num_kv_heads": 8, "vocab_size": 32_000, "max_length": 32_768, "norm_eps": 1e-5, "window": 4096,
            "dtype": "bfloat16",
            "remat": "save_named:q,k,v,attention_residuals,attention_heads,attention_out,mlp_gate,mlp_up",
        },
        "objective": {"name": "causal_lm", "chunk_size": 512},
        "data": {"source": "builtin", "sequence_length": 8192, "tokenizer": "train:32000"},
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-05, "weight_decay": 0.1,
            "clip_norm": 1.0, "schedule": {"name": "cosine", "warmup_steps": 2000, "final_fraction": 0.1},
        },
    })  # fmt: skip
