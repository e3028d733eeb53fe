"""The little model that replies to sums (configs/sft_tiny.py) learns to get them right, from a verifier alone (GRPO).

    python -m fmjax.train --config=configs/sft_tiny.py --workdir=runs/sft_tiny
    python -m fmjax.train --config=configs/grpo_tiny.py:runs/sft_tiny --workdir=runs/grpo_tiny

The model to begin with is named after the colon, and behind a comma another objective (dr_grpo, dapo, gspo, rloo):
`--config=configs/grpo_tiny.py:runs/sft_tiny,dapo`. Without a model (`--config=configs/grpo_tiny.py`) all is new, and
nothing is learnt, as no reply is ever right. The questions are built in (`fmjax/data/chats/arithmetic.py`): sums of two
digits, a hundred different ones, so that held-out records ask what is trained on too. Your own:
--config.data.source=FILE.jsonl, with prompt and answer. A reply gets 1 where its final number is the answer.

One core of an AMD EPYC shared with other work, 2026-11-30, nothing compiled before: 100 seconds, 72 of them for the
80 steps. Of the replies that are drawn 21% are right in the tenth step, 38% in the 40th and 51% in the last
(`train/drawn_reward`); of the likeliest replies to held-out records 48% after 40 steps and 59% after 80
(`eval/reward`). `train/logprob_difference` is 0 in the first step of each rollout. On sums up to 20, with a learning
rate of 1e-3 and half the batch, it forgot what it knew: 20% at the start, 5% in the end.
"""

from ml_collections import ConfigDict


def get_config(argument=""):
    model, _, name = argument.partition(",")
    name = name or "grpo"
    lengths = {"overlong_buffer": 4, "dynamic_sampling": 2} if name == "dapo" else {}
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 80, "batch_size": 256, "init_from": model or None, "log_every": 10, "checkpoint_every": 40,
            "eval_every": 40, "eval_batches": 1,
        },
        "mesh": {"data": -1},
        "model": {
            "name": "llama", "num_layers": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4,
            "num_kv_heads": 2, "max_length": 256, "tie_embeddings": True,
        },
        "objective": {
            "name": name, "rewards": {"right": {"verifier": "maths"}}, "num_samples": 8, "max_new_tokens": 16,
            "rollout_steps": 2, "decode_rows": 256, **lengths,
        },
        "data": {
            "name": "chat_prompts", "source": "fmjax.data.chats.arithmetic:digit_questions", "sequence_length": 48,
            "answer_bytes": 4, "tokenizer": "bytes", "chat_template": "turns", "heldout_fraction": 0.1,
        },
        "optimizer": {
            "name": "adamw", "learning_rate": 5e-4, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "constant", "warmup_steps": 5},
        },
    })  # fmt: skip
