"""The Transformer (Vaswani et al. 2017), base model, English to German with the recipe of section 5.

    python -m fmjax.train --config=configs/transformer.py --workdir=runs/transformer

About 25,000 source and target tokens a step, 100,000 steps, on WMT 2014 by its TFDS name.
`--config=configs/transformer.py:tiny` is 3 + 3 layers of 128 for some 30,000 short captions in files of aligned lines,
a few minutes on two CPU cores (experiments/translation):

    python -m fmjax.train --config=configs/transformer.py:tiny --workdir=runs/captions \\
        --config.data.source_file=MULTI30K/train.en.gz --config.data.target_file=MULTI30K/train.de.gz \\
        --config.data.eval_source_file=MULTI30K/val.en.gz --config.data.eval_target_file=MULTI30K/val.de.gz
"""

from ml_collections import ConfigDict


def get_config(size="base"):
    tiny = {"base": False, "tiny": True}[size]
    hidden_size = 128 if tiny else 512
    wmt = {
        "source": "tfds:wmt14_translate/de-en", "source_field": "en", "target_field": "de", "tokenizer": "train:37000",
        "sequence_length": 256,
    }  # fmt: skip
    captions = {
        "source_file": "multi30k/train.en.gz", "target_file": "multi30k/train.de.gz",
        "eval_source_file": "multi30k/val.en.gz", "eval_target_file": "multi30k/val.de.gz",
        "tokenizer": "train:4000", "sequence_length": 128,
    }  # fmt: skip
    model = {"name": "transformer", "dtype": "bfloat16", "max_length": 1024}
    if tiny:
        model = {
            "name": "transformer", "num_layers": 3, "hidden_size": hidden_size, "intermediate_size": 512,
            "num_heads": 4, "max_length": 256, "unroll": 3,
        }  # fmt: skip
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 1000 if tiny else 100_000, "batch_size": 16 if tiny else 96, "log_every": 10 if tiny else 100,
            "eval_every": 200 if tiny else 1000, "eval_batches": 0 if tiny else 50, "checkpoint_every": 1000,
            # The paper averages its last checkpoints; a moving average does the same while training.
            "ema_decay": 0.99 if tiny else 0.999,
        },
        "mesh": {"data": -1},
        "model": model,
        "objective": {"name": "seq2seq", "label_smoothing": 0.1},
        "data": {"name": "pairs"} | (captions if tiny else wmt),
        "optimizer": {
            "name": "adamw", "learning_rate": 1.0, "b1": 0.9, "b2": 0.98, "eps": 1e-9, "weight_decay": 0.0,
            "clip_norm": 0.0,
            "schedule": {"name": "noam", "hidden_size": hidden_size, "warmup_steps": 200 if tiny else 4000},
        },
    })  # fmt: skip
