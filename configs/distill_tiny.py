"""Distillation: half the tiny decoder, with one layer and half the width, learns from the whole one beside the text.

    python -m fmjax.train --config=configs/llama_tiny.py --workdir=runs/llama_tiny
    python -m fmjax.train --config=configs/distill_tiny.py --workdir=runs/distill_tiny
    python -m fmjax.train --config=configs/distill_tiny.py --workdir=runs/distill_alone --config.objective.weight=0

The first line makes the teacher; another is named after a colon, as `configs/distill_tiny.py:PATH`. The last line is the
same student without a teacher, to compare with: `eval/loss` is the cross-entropy of either.

Two CPU cores shared with other work: 218 seconds, 34 of them of processor time (2026-11-28). `eval/loss` is 2.35 nats a
byte, the teacher's 2.04; without a teacher the student is at 2.33: one so weak does not help.
"""

from ml_collections import ConfigDict


def get_config(teacher="runs/llama_tiny"):
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 300, "batch_size": 16, "log_every": 10, "checkpoint_every": 100, "eval_batches": 4},
        "mesh": {"data": -1},
        "model": {
            "name": "llama", "num_layers": 1, "hidden_size": 32, "intermediate_size": 96, "num_heads": 4,
            "num_kv_heads": 2, "max_length": 128,
        },
        "objective": {"name": "distillation", "teacher": teacher, "weight": 0.5, "temperature": 2.0},
        "data": {"source": "builtin", "sequence_length": 128, "tokenizer": "bytes"},
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.1,
            "schedule": {"name": "cosine", "warmup_steps": 30},
        },
    })  # fmt: skip
