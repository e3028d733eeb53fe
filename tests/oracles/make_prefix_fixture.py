"""Writes prefix.npz: the logits of a tiny LLaMA with a prefix and with a prompt by `peft`.

    pip install torch transformers peft && python tests/oracles/make_prefix_fixture.py
"""

import pathlib
import tempfile

import numpy as np
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
TOKENS = np.random.default_rng(0).integers(3, 20, (2, 9))

arrays = {"tokens": TOKENS}
for name, config in (("prefix", PrefixTuningConfig), ("prompt", PromptTuningConfig)):
    torch.manual_seed(0)
    published = HERE.parent / "interop" / "published" / "llama.npz"
    with tempfile.TemporaryDirectory() as folder, np.load(published) as stored:
        base = pathlib.Path(folder)
        weights = {key.removeprefix("weight/"): stored[key] for key in stored if key.startswith("weight/")}
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        (base / "config.json").write_text(str(stored["config"]))
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(model, config(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with torch.no_grad():
        arrays[f"{name}/logits"] = model(torch.tensor(TOKENS)).logits.numpy()[:, -TOKENS.shape[1] :]
    arrays[f"{name}/embedding"] = model.prompt_encoder["default"].embedding.weight.detach().numpy()
np.savez_compressed(HERE / "prefix.npz", **arrays)
