"""Writes preferences.json: the losses that `trl` computes from log-probabilities of answers, drawn at random.

Needs trl, from anywhere: make_preference_fixtures.py. Its trainers' own methods compute them; what they want of a model
and of their surroundings is made up.
"""

import json
import pathlib
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
import trl
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

ROWS, LENGTH = 4, 9


def drawn():
    """Log-probabilities a token of policy and reference, [2, 2 * ROWS, LENGTH], chosen ones first, and the mask."""
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (2 * ROWS, 1))
    return -rng.exponential(1.0, (2, 2 * ROWS, LENGTH)) * mask, mask


def surroundings(**fields):
    """What a trainer's method reads of itself."""
    trainer = MagicMock()
    trainer.accelerator.gather_for_metrics = trainer.accelerator.gather = lambda x: x
    trainer.accelerator.device = "cpu"
    for name, value in fields.items():
        setattr(trainer, name, value)
    return trainer


def model_of(logprobs):
    """A model whose answers have these log-probabilities a token."""
    logprobs = torch.tensor(logprobs, dtype=torch.float64)
    out = MagicMock(
        log_probs=logprobs, entropy=torch.zeros_like(logprobs), mean_logits=torch.zeros_like(logprobs),
        is_top1=torch.zeros_like(logprobs, dtype=torch.bool),
    )  # fmt: skip
    return MagicMock(return_value=out)


def dpo(kind, beta, logprobs, mask):
    whole = torch.tensor(np.concatenate([np.zeros((2 * ROWS, 1), bool), mask], axis=1)).long()
    inputs = {"input_ids": torch.zeros_like(whole), "attention_mask": torch.ones_like(whole), "completion_mask": whole}
    trainer = surroundings(
        beta=beta, loss_types=[kind], loss_weights=[1.0], label_smoothing=0.0, ld_alpha=None, use_weighting=False,
        f_divergence_type="reverse_kl", precompute_ref_logps=False, aux_loss_enabled=False,
        ref_model=model_of(logprobs[1]), _total_train_tokens=0, _tp_size=1,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    return float(DPOTrainer._compute_loss(trainer, model_of(logprobs[0]), inputs, False))


def kto(logprobs, mask, liked):
    """The first half of the answers are judged, the second are those of other chats."""
    whole = torch.tensor(np.concatenate([np.zeros((ROWS, 1), bool), mask[:ROWS]], axis=1)).long()
    models = [model_of(part[:ROWS]) for part in logprobs]
    for model, part in zip(models, logprobs):
        model.beside = torch.tensor(part[ROWS:].sum(-1))
    trainer = surroundings(
        beta=0.1, loss_type="kto", calculate_KL=True, precompute_ref_logps=False, aux_loss_enabled=False,
        ref_model=models[1], desirable_weight=1.0, undesirable_weight=1.5, _total_train_tokens=0, _tp_size=1,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    trainer._compute_kl_logps = lambda model, batch: model.beside
    inputs = {"input_ids": torch.zeros_like(whole), "attention_mask": torch.ones_like(whole), "completion_mask": whole}
    return float(KTOTrainer._compute_loss(trainer, models[0], {**inputs, "label": torch.tensor(liked)}, False))


def reward(scores, margins=None):
    """Bradley-Terry of scores [2 * ROWS], chosen ones first, with squared sums times .01."""
    trainer = surroundings(args=SimpleNamespace(center_rewards_coefficient=0.01), _total_train_tokens=0, _tp_size=1)
    model = MagicMock(return_value=MagicMock(logits=torch.tensor(scores)[:, None]))
    inputs = {"attention_mask": torch.ones((2 * ROWS, 1))}
    if margins is not None:
        inputs["margin"] = torch.tensor(margins)
    return float(RewardTrainer.compute_loss(trainer, model, inputs))


def main():
    logprobs, mask = drawn()
    sums, lengths = logprobs.sum(-1), mask.sum(-1)
    means = torch.tensor(sums[0] / lengths)
    found = {"dpo": dpo("sigmoid", 0.1, logprobs, mask), "ipo": dpo("ipo", 0.1, logprobs, mask)}
    cpo = surroundings(beta=2.0, simpo_gamma=1.0, label_smoothing=0.1, alpha=0.0, loss_type="simpo")
    found["simpo"] = CPOTrainer.cpo_loss(cpo, means[:ROWS], means[ROWS:])[0].mean().item()
    plain = surroundings(beta=0.1, label_smoothing=0.2, alpha=0.0, loss_type="sigmoid")
    ratios = torch.tensor(sums[0] - sums[1])  # the same formula with log-ratios is conservative DPO
    found["cdpo"] = CPOTrainer.cpo_loss(plain, ratios[:ROWS], ratios[ROWS:])[0].mean().item()
    odds = ORPOTrainer.odds_ratio_loss(surroundings(beta=0.1), means[:ROWS], means[ROWS:])[0]
    found["orpo"] = (-means[:ROWS] - odds).mean().item()
    liked = [True, False, True, False]
    # Both signs of what z is cut off at: of the policy as it is, and with the two models exchanged.
    found["kto"], found["kto_exchanged"] = kto(logprobs, mask, liked), kto(logprobs[::-1], mask, liked)
    scores, margins = np.random.default_rng(1).normal(size=2 * ROWS), np.arange(ROWS) / 4
    found["reward"], found["reward_margin"] = reward(scores), reward(scores, margins)
    kept = {"liked": liked, "scores": scores.tolist(), "margins": margins.tolist()}
    kept |= {"logprobs": sums.tolist(), "lengths": lengths.tolist(), "losses": found}
    path = pathlib.Path(__file__).parent / "preferences.json"
    path.write_text(json.dumps({"trl": trl.__version__, **kept}))
    print(found)


if __name__ == "__main__":
    main()
