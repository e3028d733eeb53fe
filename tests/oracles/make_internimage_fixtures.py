"""Writes tests/interop/vision/internimage*.npz: InternImages with random weights, and what the authors' code computes.

Needs the `oracle` extra, and a folder with the code as they publish it, of which nothing is here:
`configuration_internimage.py`, `modeling_internimage.py`, `dcnv3.py` and `dcnv3_func.py` of the hub's
OpenGVLab/internimage_t_1k_224, or of github.com/OpenGVLab/InternImage, `classification/huggingface/in1k_model/*`:

    python make_internimage_fixtures.py CODE
    python make_internimage_fixtures.py CODE --check SAVED    # what fmjax saved of a fixture: the largest difference

    internimage.npz          as T: normalised before
    internimage_large.npz    as L: normalised after, scales of layers, taps twice as far apart
        file/config.json, weight/NAME: the folder
        pixels [2, 3, 32, 32], out [2, classes]: logits in evaluation, stage/N [2, C, H, W]
        labels [2], loss, gradient/NAME (of the second): of the mean cross-entropy in evaluation
"""

import argparse
import importlib
import json
import pathlib
import sys
import types

import numpy as np
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).parent.parent / "interop" / "vision"
SIZES = dict(channels=4, depths=[1, 2, 1, 1], groups=[1, 2, 2, 4], mlp_ratio=1.0, num_classes=3)
CASES = {
    "internimage": {},
    "internimage_large": dict(layer_scale=1e-5, post_norm=True, offset_scale=2.0),
}


def published(code: pathlib.Path):
    """The module `modeling_internimage` of a folder that is no package."""
    # What it imports and does not need here: a CUDA kernel's version, how weights begin, blocks left out.
    stand_ins = {
        name: types.ModuleType(name) for name in ("pkg_resources", "timm", "timm.models", "timm.models.layers")
    }
    stand_ins["timm.models.layers"].__dict__.update(DropPath=None, trunc_normal_=torch.nn.init.trunc_normal_)
    package = types.ModuleType("published")
    package.__path__ = [str(code)]
    sys.modules |= stand_ins | {"published": package}
    return importlib.import_module("published.modeling_internimage")


def build(module, values: dict):
    return module.InternImageModelForImageClassification(module.InternImageConfig(**values)).eval()


def make(module, options: dict) -> dict:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = build(module, SIZES | options)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point():
                value += 0.3 * torch.randn(value.shape, generator=generator)
    pixels, labels = torch.randn(2, 3, 32, 32, generator=generator), torch.tensor([2, 0])
    values = json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": ["InternImageModel"]}
    values = {key: value for key, value in values.items() if key not in ("id2label", "label2id")}
    found = {"file/config.json": json.dumps(values), "pixels": pixels.numpy(), "labels": labels.int().numpy()}
    found |= {f"weight/{name}": value.clone().numpy() for name, value in model.state_dict().items()}
    output = model(pixels)
    loss = torch.nn.functional.cross_entropy(output.logits, labels)
    loss.backward()
    found |= {"out": output.logits.detach().numpy()}
    found |= {f"stage/{i}": one.detach().numpy() for i, one in enumerate(output.hidden_states)}
    if options:
        found |= {f"gradient/{name}": value.grad.numpy() for name, value in model.named_parameters()}
    return found | {"loss": loss.detach().numpy()}


def check(module, saved: pathlib.Path) -> None:
    """How far logits of what fmjax saved are from those of the fixtures: it is one of them."""
    model = build(module, json.loads((saved / "config.json").read_text()))
    model.load_state_dict(safetensors.torch.load_file(saved / "model.safetensors"), strict=True)
    for name in CASES:
        with np.load(HERE / f"{name}.npz") as fixture, torch.no_grad():
            found = model(torch.tensor(fixture["pixels"])).logits.numpy()
            print(f"{name}: largest difference {abs(found - fixture['out']).max():.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("code", type=pathlib.Path)
    parser.add_argument("--check", type=pathlib.Path)
    flags = parser.parse_args()
    module = published(flags.code)
    if flags.check:
        return check(module, flags.check)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    for name, options in CASES.items():
        np.savez_compressed(HERE / f"{name}.npz", **make(module, options), versions=versions)
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes;", versions)


if __name__ == "__main__":
    main()
