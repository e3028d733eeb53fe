"""Writes distillation.npz: losses of distillation by `trl` and by PyTorch's modules as DistilBERT's and TinyBERT's code
call them, and the attention and hidden states of tiny published models by `transformers`.

    pip install torch transformers trl && python tests/oracles/make_distillation_fixture.py
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from torch import nn
from trl.experimental.gkd import GKDTrainer

HERE = pathlib.Path(__file__).parent
MODELS = {"bert_masked_lm": "AutoModelForMaskedLM", "gemma3": "AutoModelForCausalLM", "llama": "AutoModelForCausalLM"}


def losses() -> dict[str, np.ndarray]:
    """Of logits [3, 7], hidden states [2, 4, 5] and scores of attention [2, 2, 4, 4] that are drawn."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(2, *shape)) for name, shape in
              (("logits", (3, 7)), ("hidden", (2, 4, 5)), ("scores", (2, 2, 4, 4)))}  # fmt: skip
    student, teacher = (torch.tensor(x) for x in arrays["logits"])
    for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
        found = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=0.7, reduction="none")
        arrays[f"jsd/{beta}"] = found.sum(-1).numpy()
    # transformers, examples/research_projects/distillation/distiller.py: `step`.
    t = 2.0
    ce = nn.KLDivLoss(reduction="batchmean")
    log_q, p = nn.functional.log_softmax(student / t, dim=-1), nn.functional.softmax(teacher / t, dim=-1)
    arrays["distilbert/ce"] = (ce(log_q, p) * t**2).numpy()
    student, teacher = (torch.tensor(x).reshape(-1, 5) for x in arrays["hidden"])
    cosine = nn.CosineEmbeddingLoss(reduction="mean")
    arrays["distilbert/cos"] = cosine(student, teacher, torch.ones(len(student))).numpy()
    # Huawei's TinyBERT, task_distill.py: masked scores, which lie below -1e2, count as 0.
    arrays["tinybert/hidden"] = nn.MSELoss()(student, teacher).numpy()
    masked = lambda x: torch.where(x <= -1e2, torch.zeros_like(x), x)
    student, teacher = (masked(torch.tensor(x)) for x in arrays["scores"])
    arrays["tinybert/scores"] = nn.MSELoss()(student, teacher).numpy()
    return arrays


def activations(name: str, kind: str) -> dict[str, np.ndarray]:
    """Attention [layers, B, H, T, T] and hidden states [layers + 1, B, T, D] of a published model, the second text of
    an encoder shorter than the first."""
    with tempfile.TemporaryDirectory() as folder, np.load(HERE.parent / f"interop/published/{name}.npz") as stored:
        base = pathlib.Path(folder)
        weights = {key.removeprefix("weight/"): stored[key] for key in stored if key.startswith("weight/")}
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        (base / "config.json").write_text(json.dumps(json.loads(str(stored["config"]))))
        model = getattr(transformers, kind).from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    tokens, there = np.random.default_rng(0).integers(3, 20, (2, 9)), np.ones((2, 9), np.int64)
    if name.startswith("bert"):
        there[1, 6:] = 0
    with torch.no_grad():
        found = model.eval()(
            torch.tensor(tokens), attention_mask=torch.tensor(there), output_attentions=True, output_hidden_states=True
        )
    arrays = {"tokens": tokens, "there": there}
    arrays |= {"attention": np.stack(found.attentions), "hidden": np.stack(found.hidden_states)}
    return {f"{name}/{key}": value for key, value in arrays.items()}


arrays = losses()
for name, kind in MODELS.items():
    arrays |= activations(name, kind)
np.savez_compressed(HERE / "distillation.npz", **arrays)
