"""Foundation Transformer (Wang et al. 2022), Magneto, as a decoder of the size of GPT-2 small: Sub-LN and its gains.

    python -m fmjax.train --config=configs/magneto.py --workdir=runs/magneto \\
        --config.data.source='/data/corpus/*.parquet' --config.data.tokenizer=/data/gpt2/tokenizer.json

The paper's setting (appendix C): rows of 2,048, batch of 128 rows or more, Adam with betas 0.9 and 0.98, 6e-4.
`--config=configs/magneto.py:tiny` learns the Python standard library on two CPU cores in about a minute. The encoder is
`--config=configs/bert.py:magneto`.
"""

from ml_collections import ConfigDict


def get_config(size="base"):
    tiny = {"base": False, "tiny": True}[size]
    length = 256 if tiny else 2048
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 300 if tiny else 50_000, "batch_size": 8 if tiny else 256, "log_every": 10,
            "eval_every": 0 if tiny else 1000, "eval_batches": 8, "checkpoint_every": 1000,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "magneto", "num_layers": 4 if tiny else 12, "hidden_size": 128 if tiny else 768,
            "num_heads": 4 if tiny else 12, "max_length": length, "vocab_size": None if tiny else 50_304,
            "dtype": "float32" if tiny else "bfloat16",
        },
        "objective": {"name": "causal_lm"},
        "data": {"source": "builtin", "sequence_length": length, "tokenizer": "train:2048" if tiny else "train:32768"},
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3 if tiny else 6e-4, "b2": 0.98, "weight_decay": 0.01,
            "clip_norm": 2.0, "schedule": {"name": "linear", "warmup_steps": 30 if tiny else 750},
        },
    })  # fmt: skip
