"""A reward model: how near an answer is to the right sum, learnt from rankings of four answers (InstructGPT's loss).

    python -m fmjax.train --config=configs/sft_tiny.py --workdir=runs/sft_tiny
    python -m fmjax.train --config=configs/reward_tiny.py:runs/sft_tiny --workdir=runs/reward_tiny

The decoder to begin with is named after the colon; without it (`--config=configs/reward_tiny.py`) all is new. The
rankings are built in (`fmjax/data/chats/arithmetic.py`). Your own: --config.data.source=FILE.jsonl, with prompt and
chosen and rejected, or with responses and their scores or ranks; data.num_answers is how many a prompt has at most.

With ",steps" behind the model (`--config=configs/reward_tiny.py:runs/sft_tiny,steps`) the rewards are of single steps
of longer sums, each right or wrong. After 300 steps 71% of held-out steps are told right, where 67% are right: of such
sums hardly anything is learnt in that time (2026-11-30).

One core of an Intel Xeon shared with other work, nothing compiled before: 52 seconds (2026-11-29). Of held-out pairs
95% are ranked right.

    import fmjax
    m = fmjax.load("runs/reward_tiny")
    m.can("reward")([("What is 3 + 4?", "3 + 4 = 7."), ("What is 3 + 4?", "3 + 4 = 12.")])
"""

from ml_collections import ConfigDict

RANKED = {
    "name": "preferences", "source": "fmjax.data.chats.arithmetic:rankings", "num_answers": 4, "sequence_length": 64,
}  # fmt: skip
STEPS = {"name": "steps", "source": "builtin", "sequence_length": 128}


def get_config(argument=""):
    decoder, _, kind = argument.partition(",")
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 300, "batch_size": 16, "log_every": 20, "checkpoint_every": 100, "eval_batches": 2,
            "init_from": decoder or None,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "reward",
            "decoder": {
                "name": "llama", "num_layers": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4,
                "num_kv_heads": 2, "max_length": 256, "tie_embeddings": True,
            },
        },
        "objective": {"name": "step_rewards" if kind == "steps" else "ranking"},
        "data": {
            **(STEPS if kind == "steps" else RANKED), "heldout_fraction": 0.05, "tokenizer": "bytes",
            "chat_template": "turns",
        },
        "optimizer": {
            "name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "cosine", "warmup_steps": 20},
        },
    })  # fmt: skip
