"""Writes policies.json: what `trl` and `rlax` make of log-probabilities, rewards and values drawn at random.

`make_policy_fixtures.py trl` where trl is installed, `make_policy_fixtures.py rlax` where rlax is; each replaces its
part of the file.
"""

import json
import pathlib
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np

ROWS, LENGTH = 6, 7
PATH = pathlib.Path(__file__).parent / "policies.json"


def drawn() -> dict[str, np.ndarray]:
    """Log-probabilities a token now, when drawn and of a reference, [ROWS, LENGTH], and mask, rewards, values."""
    rng = np.random.default_rng(0)
    mask = (np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (ROWS, 1))).astype(float)
    kept = -rng.exponential(1.0, (ROWS, LENGTH)) * mask
    return {
        "mask": mask, "kept": kept, "now": kept + rng.normal(0, 0.3, mask.shape) * mask,
        "reference": kept + rng.normal(0, 0.3, mask.shape) * mask, "advantages": rng.normal(size=ROWS),
        "rewards": rng.normal(size=mask.shape) * mask, "values": rng.normal(size=mask.shape) * mask,
    }  # fmt: skip


def surroundings(now, **fields):
    """What a trainer's method reads of itself."""
    import torch

    trainer = MagicMock()
    trainer.accelerator.gather = trainer.accelerator.reduce = lambda x, **_: x
    trainer.accelerator.num_processes = 1
    trainer.model.training = False
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (now, torch.zeros_like(now), None)
    plain = dict(
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, aux_loss_enabled=False,
        _entropy_bonus_enabled=False, epsilon_low=0.2, epsilon_high=0.28, beta=0.0, max_completion_length=LENGTH,
        importance_sampling_level="token", args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
    )  # fmt: skip
    for name, value in (plain | fields).items():
        setattr(trainer, name, value)
    return trainer


def of_trl() -> dict:
    """Losses and their gradients by the log-probabilities."""
    import torch
    import trl
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    arrays = {name: torch.tensor(value) for name, value in drawn().items()}
    cases = {
        "grpo": dict(loss_type="grpo", beta=0.1), "dr_grpo": dict(loss_type="dr_grpo"), "dapo": dict(loss_type="bnpo"),
        "gspo": dict(loss_type="grpo", importance_sampling_level="sequence", epsilon_low=0.03, epsilon_high=0.04),
        "rloo": dict(),
    }  # fmt: skip
    found = {}
    for name, fields in cases.items():
        now = arrays["now"].clone().requires_grad_()
        empty = torch.zeros((ROWS, 0), dtype=torch.long)
        inputs = {
            "prompt_ids": empty, "prompt_mask": empty, "completion_ids": torch.zeros((ROWS, LENGTH), dtype=torch.long),
            "completion_mask": arrays["mask"], "advantages": arrays["advantages"],
            "old_per_token_logps": arrays["kept"], "ref_per_token_logps": arrays["reference"],
            "old_logps": arrays["kept"].sum(-1),
        }  # fmt: skip
        trainer = RLOOTrainer if name == "rloo" else GRPOTrainer
        loss = trainer._compute_loss(surroundings(now, **fields), MagicMock(), inputs)
        loss.backward()
        found[name] = {"loss": loss.item(), "gradient": now.grad.tolist()}
    return {"version": trl.__version__, "losses": found}


def of_rlax() -> dict:
    """Generalised advantages of each row, and the clipped surrogate of its tokens."""
    import jax
    import rlax

    jax.config.update("jax_enable_x64", True)
    arrays, found, losses = drawn(), [], []
    for row in range(ROWS):
        size = int(arrays["mask"][row].sum())
        values = np.append(arrays["values"][row, :size], 0.0)
        rewards, discounts = arrays["rewards"][row, :size], np.full(size, 0.97)
        advantages = rlax.truncated_generalized_advantage_estimation(rewards, discounts, 0.9, values)
        found.append(np.pad(np.asarray(advantages), (0, LENGTH - size)).tolist())
        ratios = np.exp(arrays["now"][row, :size] - arrays["kept"][row, :size])
        losses.append(float(rlax.clipped_surrogate_pg_loss(ratios, advantages, 0.2)))
    return {"gamma": 0.97, "lambda": 0.9, "advantages": found, "surrogates": losses}


def main():
    known = json.loads(PATH.read_text()) if PATH.is_file() else {}
    known["drawn"] = {name: value.tolist() for name, value in drawn().items()}
    known[sys.argv[1]] = {"trl": of_trl, "rlax": of_rlax}[sys.argv[1]]()
    PATH.write_text(json.dumps(known))


if __name__ == "__main__":
    main()
