"""Writes peft.npz: adapters of tiny models by `peft`, as its folders hold them, and the logits with them.

    pip install torch transformers peft && python tests/oracles/make_peft_fixture.py
"""

import pathlib
import tempfile

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
TOKENS = np.random.default_rng(0).integers(3, 20, (2, 9))
ADAPTERS = {
    "llama": dict(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_dora=True, use_rslora=True),
    "gpt2": dict(
        r=2, lora_alpha=3, target_modules=["c_attn", "c_fc"], rank_pattern={"h.0.mlp.c_fc": 3},
        alpha_pattern={"h.0.mlp.c_fc": 5}, fan_in_fan_out=True,
    ),
}  # fmt: skip

arrays = {"tokens": TOKENS}
for name, options in ADAPTERS.items():
    torch.manual_seed(0)
    published = HERE.parent / "interop" / "published" / f"{name}.npz"
    with tempfile.TemporaryDirectory() as folder, np.load(published) as stored:
        base, saved = pathlib.Path(folder) / "base", pathlib.Path(folder) / "adapter"
        base.mkdir()
        weights = {key.removeprefix("weight/"): stored[key] for key in stored if key.startswith("weight/")}
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        (base / "config.json").write_text(str(stored["config"]))
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)).eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if "magnitude" in path:
                    parameter *= 1 + 0.2 * torch.rand_like(parameter)
            arrays[f"{name}/logits"] = model(torch.tensor(TOKENS)).logits.numpy()
        model.save_pretrained(saved)
        arrays[f"{name}/config"] = (saved / "adapter_config.json").read_text()
        for key, tensor in load_file(saved / "adapter_model.safetensors").items():
            arrays[f"{name}/tensor/{key}"] = tensor
np.savez_compressed(HERE / "peft.npz", **arrays)
