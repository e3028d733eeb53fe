"""Distillation: half the tiny decoder, with one layer and half the width, learns from a whole one trained for longer.

    python -m fmjax.train --config=configs/llama_tiny.py --workdir=runs/teacher --config.train.steps=1200
    python -m fmjax.train --config=configs/distill_tiny.py:runs/teacher --workdir=runs/distill_tiny
    python -m fmjax.train --config=configs/distill_tiny.py:runs/teacher --workdir=runs/distill_alone \\
        --config.objective.weight=0

The teacher is named after the colon. The last line is the control: the same student and steps without what the teacher
says. `eval/loss` is the cross-entropy of either, in nats a byte: 2.18 with the teacher, which is at 1.46, and 2.28
alone; with --config.seed=1 2.21 and 2.31. At temperature 2 it is no help here: 2.38 with a teacher at 1.56.

Two CPU cores of an AMD EPYC shared with other work: 24 seconds (30 of processor time), the teacher 120 (108)
(2026-11-29).
"""

from ml_collections import ConfigDict


def get_config(teacher="runs/llama_tiny"):
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 300, "batch_size": 16, "log_every": 10, "checkpoint_every": 100, "eval_batches": 16},
        "mesh": {"data": -1},
        "model": {
            "name": "llama", "num_layers": 1, "hidden_size": 32, "intermediate_size": 96, "num_heads": 4,
            "num_kv_heads": 2, "max_length": 128,
        },
        "objective": {"name": "distillation", "teacher": teacher, "weight": 0.9, "temperature": 1.0},
        "data": {"source": "builtin", "sequence_length": 128, "tokenizer": "bytes"},
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.1,
            "schedule": {"name": "cosine", "warmup_steps": 30},
        },
    })  # fmt: skip
