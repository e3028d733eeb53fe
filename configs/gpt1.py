"""GPT (Radford et al. 2018), 117M parameters, post-norm, with the recipe of its section 4.1.

    python -m fmjax.train --config=configs/gpt1.py --workdir=runs/gpt1 \\
        --config.data.source='/data/books/*.jsonl' --config.data.tokenizer=/data/openai-gpt

64 rows of 512 tokens a step, 100 epochs of BooksCorpus in the paper. `--config=configs/gpt1.py:tiny` learns the Python
standard library on two CPU cores in about a minute.
"""

from ml_collections import ConfigDict


def get_config(size="117m"):
    tiny = {"117m": False, "tiny": True}[size]
    length = 256 if tiny else 512
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 300 if tiny else 200_000, "batch_size": 8 if tiny else 64, "log_every": 10,
            "eval_every": 0 if tiny else 2000, "eval_batches": 16, "checkpoint_every": 2000,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "gpt", "num_layers": 4 if tiny else 12, "hidden_size": 128 if tiny else 768,
            "num_heads": 4 if tiny else 12, "max_length": length, "placement": "post", "position_init_std": 0.02,
            "scale_residual_init": False, "dropout": 0.1, "dtype": "float32" if tiny else "bfloat16",
        },
        "objective": {"name": "causal_lm"},
        "data": {"source": "builtin", "sequence_length": length, "tokenizer": "train:2048" if tiny else "train:40000"},
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3 if tiny else 2.5e-4, "b2": 0.999, "weight_decay": 0.01,
            "schedule": {"name": "cosine", "warmup_steps": 30 if tiny else 2000, "final_fraction": 0.0},
        },
    })  # fmt: skip
