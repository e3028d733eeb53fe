"""The stages of a small InstructGPT as configs; `run.py` trains them one after another.

    --config=experiments/instructgpt/stages.py:pretrain
    --config=experiments/instructgpt/stages.py:sft,PRETRAINED
    --config=experiments/instructgpt/stages.py:reward,SFT
    --config=experiments/instructgpt/stages.py:ppo,SFT,REWARD
    --config=experiments/instructgpt/stages.py:dpo,SFT

Behind a stage's name are the runs that it begins with. `data.source`, and of rankings `data.eval_source`, are files
that `run.py` writes.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.instructgpt import task

PROMPT, REPLY = 36, 24
"""Tokens at most: a signature, a token a character if need be, between BOS and EOS, and the reply's BOS."""
RANKED_ROWS = 8
"""Rankings of a step of a reward model."""
DECODER = {
    "name": "llama", "num_layers": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4, "num_kv_heads": 2,
    "max_length": 128, "tie_embeddings": True,
}  # fmt: skip
CHATS = {"source": "", "chat_template": str(pathlib.Path(__file__).with_name("signature.jinja"))}


def get_config(argument="pretrain"):
    stage, *models = argument.split(",")
    return ConfigDict({"seed": 0, "mesh": {"data": -1}} | STAGES[stage](*models))


def _train(steps, batch_size, **more):
    return {
        "steps": steps, "batch_size": batch_size, "log_every": 20, "checkpoint_every": 200, "eval_batches": 4,
        "sample_every": -1, "tensorboard": False, **more,
    }  # fmt: skip


def _adamw(learning_rate, schedule="cosine", weight_decay=0.0):
    return {
        "name": "adamw", "learning_rate": learning_rate, "weight_decay": weight_decay, "clip_norm": 1.0,
        "schedule": {"name": schedule, "warmup_steps": 10},
    }  # fmt: skip


def pretrain():
    """Python's standard library in pieces of a vocabulary of 1,024."""
    return {
        "train": _train(1200, 16), "model": DECODER, "objective": {"name": "causal_lm"},
        "data": {"source": "builtin", "sequence_length": 128, "tokenizer": "train:1024"},
        "optimizer": _adamw(3e-3, weight_decay=0.1),
    }  # fmt: skip


def sft(pretrained):
    """Docstrings to signatures."""
    return {
        "train": _train(200, 16, init_from=pretrained), "model": DECODER, "objective": {"name": "causal_lm"},
        "data": {"name": "chats", "sequence_length": 128, "tokenizer": pretrained, "heldout_fraction": 0.05, **CHATS},
        "optimizer": _adamw(5e-4, weight_decay=0.1),
    }  # fmt: skip


def reward(base):
    """Up to four ranked answers a row."""
    return {
        "train": _train(750, RANKED_ROWS, init_from=base, eval_batches=32),
        "model": {"name": "reward", "decoder": DECODER}, "objective": {"name": "ranking"},
        "data": {
            "name": "preferences", "num_answers": 4, "sequence_length": PROMPT + REPLY, "tokenizer": base,
            "eval_source": "", **CHATS,
        },
        "optimizer": _adamw(1e-3),
    }  # fmt: skip


def ppo(policy, taste, ptx=True):
    """PPO, perhaps with pretraining in the gradient; `learnt` is learnt from, `gold` is told beside it."""
    prompts = {"name": "chat_prompts", "sequence_length": PROMPT, "heldout_fraction": 0.0, "tokenizer": policy, **CHATS}
    text = {"name": "text", "source": "builtin", "sequence_length": 64, "tokenizer": policy}
    return {
        "train": _train(
            160, 64, init_from=policy, init_parts=(taste,), log_every=4, checkpoint_every=20, keep_every=20,
            eval_every=-1,
        ),
        "model": {"name": "actor_critic", "policy": DECODER, "value": {"name": "reward", "decoder": DECODER}},
        "objective": {
            "name": "ppo", "reference": policy, "num_samples": 1, "max_new_tokens": REPLY, "rollout_steps": 2,
            "decode_rows": 128, "missing_eos_penalty": task.CUT, "kl_weight": 0.02, "ptx_weight": 1.0 if ptx else 0.0,
            "rewards": {
                "learnt": {"models": (taste,)},
                "gold": {"function": "experiments.instructgpt.task:gold", "weight": 0.0},
            },
        },
        "data": {"name": "with_pretraining", "texts": 1, "prompts": prompts, "text": text} if ptx else prompts,
        "optimizer": _adamw(3e-4, "constant"),
    }  # fmt: skip


def dpo(policy):
    """The same rankings without a reward model: all pairs of four answers."""
    return {
        "train": _train(80, 32, init_from=policy, checkpoint_every=40, keep_every=40, eval_batches=8),
        "model": DECODER, "objective": {"name": "dpo", "reference": policy, "beta": 0.1},
        "data": {
            "name": "preferences", "num_answers": 4, "sequence_length": PROMPT + REPLY, "tokenizer": policy,
            "eval_source": "", **CHATS,
        },
        "optimizer": _adamw(1e-4),
    }  # fmt: skip


STAGES = {
    "pretrain": pretrain, "sft": sft, "reward": reward, "ppo": ppo, "dpo": dpo,
    "ppo_without_ptx": lambda *models: ppo(*models, ptx=False),
}  # fmt: skip
