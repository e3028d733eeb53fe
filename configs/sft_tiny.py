"""A small decoder learns to reply: chats about sums, by supervised fine-tuning on the assistant's tokens alone.

    python -m fmjax.train --config=configs/sft_tiny.py --workdir=runs/sft_tiny
    python -m fmjax.generate --model=runs/sft_tiny --chat

The chats are built in (`fmjax/data/chats/arithmetic.py`): "What is 3 + 4?", "3 + 4 = 7.", "And 5 more?",
"7 + 5 = 12."; where a system message says "Only the number." the replies are that. Chats of your own:
--config.data.source=CHATS.jsonl, with messages, prompt and completion, instructions (Alpaca) or conversations
(ShareGPT). `eval/loss` is the cross-entropy of held-out replies, in nats a token of theirs.

One core of an Intel Xeon shared with other work, nothing compiled before: 59 seconds (2026-11-29). `eval/loss` is 0.32
and 89% of the replies' bytes are the likeliest: the form is learnt, the sums nearly ("12 + 9 = 20.").
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict({
        "seed": 0,
        "train": {"steps": 500, "batch_size": 8, "log_every": 20, "checkpoint_every": 200, "eval_batches": 4},
        "mesh": {"data": -1},
        "model": {
            "name": "llama", "num_layers": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4,
            "num_kv_heads": 2, "max_length": 256, "tie_embeddings": True,
        },
        "objective": {
            "name": "causal_lm", "sample_chat": True, "sample_prompts": ("What is 3 + 4?", "What is 12 + 9?"),
            "sample_tokens": 32, "sample_temperature": 0.0,
        },
        "data": {"name": "chats", "source": "builtin", "sequence_length": 256, "chat_template": "turns"},
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.1,
            "schedule": {"name": "cosine", "warmup_steps": 30},
        },
    })  # fmt: skip
