"""GPT-3 175B (Brown et al. 2020, table 2.1) for 2,048 chips of TPU v5p.

    python -m fmjax.train --config=configs/gpt3_175b.py --workdir=runs/gpt3_175b \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/gpt2/tokenizer.json
    python -m fmjax.plan --config=configs/gpt3_175b.py --topology=v5p:8x16x16

4M tokens a step (the paper's 3.2M do not divide over so many chips). `configs/gpt3.py` has the other sizes, and says
what the paper leaves open.

Planned for v5p:8x16x16 (2026-11-26, JAX 0.10.2, libtpu 0.0.42.1): 43 of 96 GiB a chip, 98.9% of the compiled FLOPs
useful, a step of at least 4.77 s, limited by compute; not run on such a slice yet.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 72_000, "batch_size": 2048, "accumulate_steps": 2, "log_every": 10, "eval_every": 1000,
            "eval_batches": 8, "checkpoint_every": 500, "keep_every": 10_000,
        },
        "mesh": {"data": 1, "fsdp": -1, "tensor": 4, "replicate": ("norm",)},
        "model": {
            "name": "gpt", "num_layers": 96, "hidden_size": 12_288, "num_heads": 96, "head_dim": 128,
            "max_length": 2048, "window": 256, "layer_pattern": ("global", "local"),
            # 50,257 tokens, padded so that the head divides over the mesh and fills whole matrix tiles.
            "vocab_size": 50_304,
            "dtype": "bfloat16",
            "remat": "save_named:q,k,v,attention_residuals,attention_heads,attention_out,mlp_up",
        },
        "objective": {"name": "causal_lm", "chunk_size": 256},
        "data": {"source": "builtin", "sequence_length": 2048, "tokenizer": "train:32768"},
        "optimizer": {
            "name": "adamw", "learning_rate": 0.6e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-08, "weight_decay": 0.1,
            "clip_norm": 1.0, "schedule": {"name": "cosine", "warmup_steps": 90, "final_fraction": 0.1},
        },
    })  # fmt: skip
