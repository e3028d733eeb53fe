"""RoBERTa base (Liu et al. 2019): masked tokens alone, masks drawn anew at every visit, full rows across documents.

    python -m fmjax.train --config=configs/roberta.py --workdir=runs/roberta \\
        --config.data.source='/data/corpus/*.jsonl' --config.data.tokenizer=/data/roberta-base

8,192 rows of 512 tokens a step, 500,000 steps, for a large slice; `train.accumulate_steps` makes it fit fewer chips.
`--config=configs/roberta.py:tiny` learns any plain text on two CPU cores in a few minutes (experiments/masked_lm).
"""

from ml_collections import ConfigDict


def get_config(size="base"):
    tiny = {"base": False, "tiny": True}[size]
    model = {"name": "roberta", "vocab_size": 50_265, "dtype": "bfloat16"}
    if tiny:
        model = {
            "name": "roberta", "num_layers": 4, "hidden_size": 128, "num_heads": 4, "max_length": 128, "dropout": 0.0,
            "attention_dropout": 0.0, "unroll": 4,
        }  # fmt: skip
    data = {"name": "masked_text", "source": "builtin", "tokenizer": "train_bpe:50265", "sequence_length": 512}
    if tiny:
        data |= {"tokenizer": "train_bpe:4096", "sequence_length": 128, "sentences": "ignore"}
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 1000 if tiny else 500_000, "batch_size": 16 if tiny else 8192, "log_every": 10 if tiny else 100,
            "eval_every": 200 if tiny else 5000, "eval_batches": 20, "checkpoint_every": 1000,
        },
        "mesh": {"data": -1},
        "model": model,
        "objective": {"name": "masked_lm"},
        "data": data,
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3 if tiny else 6e-4, "b2": 0.98, "eps": 1e-6, "weight_decay": 0.01,
            "clip_norm": 1.0 if tiny else 0.0,
            "schedule": {"name": "linear", "warmup_steps": 100 if tiny else 24_000},
        },
    })  # fmt: skip
