"""InstructGPT 1.3B (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, appendix C): its three stages, the paper's
numbers, for 64 chips of TPU v5p.

    python -m fmjax.train --config=configs/gpt3.py:xl --workdir=runs/gpt3_xl
    python -m fmjax.train --config=configs/gpt3.py:6.7b --workdir=runs/gpt3_6b
    python -m fmjax.train --config=configs/instructgpt_1_3b.py:sft,runs/gpt3_xl --workdir=runs/sft \\
        --config.data.source='/data/demonstrations/*.jsonl'
    python -m fmjax.train --config=configs/instructgpt_1_3b.py:sft_6b,runs/gpt3_6b --workdir=runs/sft_6b \\
        --config.data.source='/data/demonstrations/*.jsonl'
    python -m fmjax.train --config=configs/instructgpt_1_3b.py:reward,runs/sft_6b --workdir=runs/reward \\
        --config.data.source='/data/rankings/*.jsonl'
    python -m fmjax.train --config=configs/instructgpt_1_3b.py:ppo,runs/sft,runs/reward --workdir=runs/instructgpt \\
        --config.data.prompts.source='/data/prompts/*.jsonl' --config.data.text.source='/data/corpus/*.parquet'
    python -m fmjax.plan --config=configs/instructgpt_1_3b.py --topology=v5p:4x4x4

The models that a stage begins with stand behind its name. Without any, `ppo` is planned with the shapes of the other
stages' models. Of the paper: 256,000 episodes, 512 a rollout in minibatches of 64, one inner epoch, beta 0.02, GAE
without a discount, ratio clipped at 0.2, pretraining with 27.8 times the weight and 8 times the examples, weights
averaged at 0.992, the reward model and the values of 6B, K = 4 to 9 answers ranked. Not in the paper, and taken from
Ziegler et al. 2019: lambda 0.95, the values' weight 0.1, their clip 0.2, whitened advantages. The values learn at the
policy's rate, 9.65e-6; the paper has 9e-6 for them. Other than in the paper: `ppo` begins with the model of `sft`, and
the paper's with one of two epochs of demonstrations, a tenth of it pretraining texts; the reward model's scores are
taken as they are, and the paper's are shifted so that demonstrations score 0 on average. Not trained. The
plan of `ppo` for v5p:4x4x4 took 331 s of one core and 6.1 GB: peak 29.75 of 95.7 GiB, 96.1% useful FLOPs, a step of at
least 0.528 s, before plans counted the models that rollouts alone read (2026-11-30).
"""

from ml_collections import ConfigDict

XL = {"num_layers": 24, "hidden_size": 2048, "num_heads": 16, "head_dim": 128}
LARGE = {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "head_dim": 128}
GPT = {
    "name": "gpt", "max_length": 2048, "window": 256, "layer_pattern": ("global", "local"), "vocab_size": 50_304,
    "dtype": "bfloat16", "remat": "save_named:q,k,v,attention_residuals,attention_heads,attention_out,mlp_up",
}  # fmt: skip
HERE = "configs/instructgpt_1_3b.py"


def get_config(argument="ppo"):
    stage, *models = argument.split(",")
    return ConfigDict({"seed": 0, "mesh": {"data": 1, "fsdp": -1}} | STAGES[stage](*models))


def _train(steps, batch_size, **more):
    return {
        "steps": steps, "batch_size": batch_size, "log_every": 10, "eval_every": 0, "checkpoint_every": 200, **more,
    }  # fmt: skip


def _adamw(learning_rate, schedule, **more):
    return {
        "name": "adamw", "learning_rate": learning_rate, "b1": 0.9, "b2": 0.95, "weight_decay": 0.0, "clip_norm": 1.0,
        "schedule": {"name": schedule, **more},
    }  # fmt: skip


def _chats(name, tokenizer, **more):
    return {"name": name, "source": "builtin", "tokenizer": tokenizer or "bytes", "chat_template": "turns", **more}


def sft(size, base=None):
    """16 epochs of 13,000 demonstrations in batches of 32, residual dropout 0.2, cosine to a tenth."""
    return {
        "mesh": {"data": 1, "fsdp": -1, "sequence": 2},
        "train": _train(6_500, 32, init_from=base),
        "model": GPT | size | {"dropout": 0.2}, "objective": {"name": "causal_lm"},
        "data": _chats("chats", base, sequence_length=2048),
        "optimizer": _adamw(9.65e-6, "cosine", final_fraction=0.1),
    }  # fmt: skip


def reward(base=None):
    """One epoch of 33,000 prompts in batches of 64, up to 9 answers ranked, each read once."""
    return {
        "train": _train(516, 64, init_from=base),
        "model": {"name": "reward", "decoder": GPT | LARGE}, "objective": {"name": "ranking"},
        "data": _chats("preferences", base, sequence_length=2048, num_answers=9),
        "optimizer": _adamw(9e-6, "cosine", final_fraction=0.1),
    }  # fmt: skip


def ppo(policy=None, taste=None):
    """256,000 episodes: 500 rollouts of 512, in 8 minibatches of 64."""
    shapes = not policy
    return {
        "train": _train(
            4_000, 64, ema_decay=0.992, init_from=policy, init_parts=() if shapes else (taste,),
        ),
        "model": {
            "name": "actor_critic", "policy": GPT | XL, "value": {"name": "reward", "decoder": GPT | LARGE},
        },
        "objective": {
            "name": "ppo", "rewards": {"taste": {"models": (taste or f"{HERE}:reward",)}},
            "reference": policy or f"{HERE}:sft", "num_samples": 1, "max_new_tokens": 1024, "rollout_steps": 8,
            "decode_rows": 512, "kl_weight": 0.02, "gamma": 1.0, "lam": 0.95, "clip": 0.2, "value_clip": 0.2,
            "value_weight": 0.1, "whiten": "batch", "ptx_weight": 27.8,
        },
        "data": {
            "name": "with_pretraining", "texts": 8,
            "prompts": _chats("chat_prompts", policy, sequence_length=1024),
            "text": {"name": "text", "source": "builtin", "sequence_length": 2048, "tokenizer": policy or "bytes"},
        },
        # Over the first 10 rollouts, from a tenth.
        "optimizer": _adamw(9.65e-6, "constant", warmup_steps=80),
    }  # fmt: skip


STAGES = {
    "sft": lambda *models: sft(XL, *models), "sft_6b": lambda *models: sft(LARGE, *models), "reward": reward,
    "ppo": ppo,
}  # fmt: skip
