"""BERT base (Devlin et al. 2019): masked tokens and next sentences, static masks, the recipe of its appendix A.2.

    python -m fmjax.train --config=configs/bert.py --workdir=runs/bert \\
        --config.data.source='/data/wikipedia/*.jsonl' --config.data.tokenizer=/data/bert-base-uncased

256 rows of 512 tokens a step, a million steps (the paper's first 90% have rows of 128). A document's sentences are its
lines. `--config=configs/bert.py:tiny` learns any plain text on two CPU cores in a few minutes (experiments/masked_lm),
and `--config=configs/bert.py:magneto` is the base size with the Foundation Transformer's encoder, without next
sentences.
"""

from ml_collections import ConfigDict


def get_config(size="base"):
    tiny = {"base": False, "magneto": False, "tiny": True}[size]
    model = {"name": "bert", "vocab_size": 30_522, "dtype": "bfloat16"}
    if size == "magneto":
        model = {"name": "magneto_encoder", "dtype": "bfloat16"}
    if tiny:
        model = {
            "name": "bert", "num_layers": 4, "hidden_size": 128, "num_heads": 4, "max_length": 128, "dropout": 0.0,
            "attention_dropout": 0.0, "unroll": 4,
        }  # fmt: skip
    data = {"name": "masked_text", "source": "builtin", "tokenizer": "train_wordpiece:30522", "sequence_length": 512}
    if tiny:
        data |= {"tokenizer": "train_wordpiece:4096", "sequence_length": 128}
    if size != "magneto":
        data |= {"masking": "static", "next_sentence": True}
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 1000 if tiny else 1_000_000, "batch_size": 16 if tiny else 256, "log_every": 10 if tiny else 100,
            "eval_every": 200 if tiny else 5000, "eval_batches": 20, "checkpoint_every": 1000,
        },
        "mesh": {"data": -1},
        "model": model,
        "objective": {"name": "masked_lm"},
        "data": data,
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3 if tiny else 1e-4, "b2": 0.999, "weight_decay": 0.01,
            "clip_norm": 1.0,
            "schedule": {"name": "linear", "warmup_steps": 100 if tiny else 10_000},
        },
    })  # fmt: skip
