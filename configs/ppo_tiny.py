"""InstructGPT's third stage, small: the model that replies to sums learns from the reward model of sums (PPO-ptx).

    python -m fmjax.train --config=configs/sft_tiny.py --workdir=runs/sft_tiny
    python -m fmjax.train --config=configs/reward_tiny.py:runs/sft_tiny --workdir=runs/reward_tiny
    python -m fmjax.train --config=configs/ppo_tiny.py:runs/sft_tiny+runs/reward_tiny --workdir=runs/ppo_tiny

Behind the colon are the model to begin with, which is the reference too, and the reward model, which the values begin
with. Without them (`--config=configs/ppo_tiny.py`) all is new, near to nothing, with a verifier as the reward: a run
that shows the parts at work and learns nothing. The chats of `configs/sft_tiny.py` are the pretraining texts, mixed
into the same gradient. What is loaded of the run is the policy. Beside the reward model's score (`reward_taste`) it
tells how many replies are right (`reward_right`), with a weight of 0.

One core of an AMD EPYC shared with other work, 2026-11-30: 72 seconds, 58 of processor time. The reward model's score
of the likeliest replies to 64 held-out prompts is 1.28 after 40 steps and 2.34 after 80, at a KL of 1.2 nats a reply;
the pretraining loss stays at 0.29. What is right does not follow: 41% and 34% of the same replies. The reward model
knows which of two answers is nearer to a sum, and the policy finds what it likes.
"""

from ml_collections import ConfigDict

LLAMA = {
    "name": "llama", "num_layers": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4, "num_kv_heads": 2,
    "max_length": 256, "tie_embeddings": True,
}  # fmt: skip


def get_config(argument=""):
    policy, _, reward = argument.partition("+")
    near = {"reference": policy, "kl_weight": 0.1} if policy else {}
    # With a reward model what is right is measured alone.
    taste = {"taste": {"models": (reward,)}} if reward else {}
    rewards = {**taste, "right": {"verifier": "maths", "weight": 0.0 if reward else 1.0}}
    chats = {"tokenizer": "bytes", "chat_template": "turns", "heldout_fraction": 0.1}
    return ConfigDict({
        "seed": 0,
        "train": {
            "steps": 80, "batch_size": 64, "init_from": policy or None, "init_parts": (reward,) if reward else (),
            "log_every": 10, "checkpoint_every": 40, "eval_every": 40, "eval_batches": 1,
        },
        "mesh": {"data": -1},
        "model": {"name": "actor_critic", "policy": LLAMA, "value": {"name": "reward", "decoder": LLAMA}},
        "objective": {
            "name": "ppo", "rewards": rewards, "missing_eos_penalty": 1.0, "num_samples": 1, "max_new_tokens": 16,
            "rollout_steps": 2, "decode_rows": 128, "ptx_weight": 1.0, **near,
        },
        "data": {
            "name": "with_pretraining", "texts": 1,
            "prompts": {"name": "chat_prompts", "source": "builtin", "sequence_length": 48, "answer_bytes": 4, **chats},
            "text": {"name": "chats", "source": "builtin", "sequence_length": 96, **chats},
        },
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-4, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "constant", "warmup_steps": 5},
        },
    })  # fmt: skip
