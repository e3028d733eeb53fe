"""GPT-2 small (Radford et al. 2019), 124M parameters, with the recipe common since: AdamW, cosine, bfloat16.

    python -m fmjax.train --config=configs/gpt2_124m.py --workdir=runs/gpt2_124m \\
        --config.data.source='/data/openwebtext/*.parquet' --config.data.tokenizer=/data/gpt2/tokenizer.json
    python -m fmjax.plan --config=configs/gpt2_124m.py --topology=v5e:2x2

Half a million tokens a step, 100,000 steps. 124M parameters fit one chip whole, so the mesh only replicates. The batch
is computed in parts that fit four chips of TPU v5e; with more chips or memory, lower `train.accumulate_steps`.

Planned for v5e:2x2 (2026-11-26, JAX 0.10.2, libtpu 0.0.42.1): 9 of 16 GiB a chip, 95.0% of the compiled FLOPs
useful, a step of at least 0.57 s, limited by memory; not run on such a slice yet.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 100_000, "batch_size": 512, "accumulate_steps": 8, "log_every": 20, "eval_every": 1000,
            "eval_batches": 20, "sample_every": 5000, "checkpoint_every": 1000, "keep_every": 20_000,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "gpt", "num_layers": 12, "hidden_size": 768, "num_heads": 12, "max_length": 1024,
            # 50,257 tokens, padded so that the head divides over any mesh and fills whole matrix tiles.
            "vocab_size": 50_304,
            "dtype": "bfloat16", "remat": "none",
        },
        "objective": {"name": "causal_lm"},
        "data": {"source": "builtin", "sequence_length": 1024, "tokenizer": "train:32768"},
        "optimizer": {
            "name": "adamw", "learning_rate": 6e-4, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 700, "final_fraction": 0.1},
        },
    })  # fmt: skip
