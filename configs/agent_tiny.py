"""A little agent learns that its calculator is worth calling, from a reward of its answers alone (REINFORCE).

    python -m fmjax.train --config=configs/agent_tiny.py --workdir=runs/agent_shown
    python -m fmjax.train --config=configs/agent_tiny.py:runs/agent_shown --workdir=runs/agent_tiny
    python -m fmjax.agent --model=runs/agent_tiny --goal='48+37' --tools=calculator --max_new_tokens=20

The first run learns from episodes that are built in (`fmjax/agents/problems.py`): in half of them the calculator is
called, in the others the sum is guessed. The second begins with it, which is named after the colon, and draws episodes
of its own; what the calculator says is read and not learnt. `train/reward` is the share of right answers.

One core of an AMD EPYC with other work beside it, 2026-11-30: 97 seconds, and 27 with the programs compiled before (67
without), one seed. Of the episodes drawn 51% are right at step 5, 88% at step 20, 96% at step 40; of the likeliest on
goals held out (`eval/reward`) all, at step 20 and at 40. `train/logprob_difference` is 0 wherever it is logged. With
400 steps of the first run numbers are not copied yet: 0 to 5% are right, and the second run does not change that.
"""

from ml_collections import ConfigDict


def get_config(argument=""):
    acting = {
        "name": "agent_reinforce", "reward": "fmjax.agents.problems:right_sum", "tools": ("calculator",),
        "num_samples": 8, "max_steps": 3, "max_new_tokens": 20, "max_length": 64, "decode_rows": 128,
    }  # fmt: skip
    goals = {
        "name": "prompts", "source": "fmjax.agents.problems:sums", "sequence_length": 6, "tokenizer": "bytes",
        "heldout_fraction": 0.1,
    }  # fmt: skip
    shown = {"source": "fmjax.agents.problems:demonstrations", "sequence_length": 128, "tokenizer": "bytes"}
    train = {"steps": 2000, "batch_size": 16, "log_every": 100, "checkpoint_every": 200, "eval_batches": 2}
    if argument:
        train = {
            "steps": 40, "batch_size": 128, "init_from": argument, "log_every": 5, "checkpoint_every": 20,
            "eval_every": 20, "eval_batches": 1,
        }  # fmt: skip
    return ConfigDict({
        "seed": 0,
        "train": train,
        "mesh": {"data": -1},
        "model": {
            "name": "llama", "num_layers": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4,
            "num_kv_heads": 2, "max_length": 128, "tie_embeddings": True,
        },
        "objective": acting if argument else {"name": "causal_lm"},
        "data": goals if argument else shown,
        "optimizer": {
            "name": "adamw", "learning_rate": 3e-4 if argument else 3e-3, "weight_decay": 0.0, "clip_norm": 1.0,
            "schedule": {"name": "constant", "warmup_steps": 5} if argument else {"name": "cosine", "warmup_steps": 30},
        },
    })  # fmt: skip
