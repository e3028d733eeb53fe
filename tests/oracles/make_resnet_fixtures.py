"""Writes tests/interop/vision/resnet*.npz: published ResNets with random weights and statistics, and what PyTorch
computes in training and in evaluation.

Needs the `oracle` extra. Run from anywhere: python make_resnet_fixtures.py

    resnet_basic.npz, resnet_bottleneck.npz, resnet_early.npz
        file/config.json, weight/NAME: the folder as `save_pretrained` writes it
        pixels [4, 3, 12, 12], out [4, classes]: logits in evaluation, pooled [4, D]
        labels [4], trained [4, classes], loss, gradient/NAME: logits in training, the mean cross-entropy, its gradients
        after/NAME: running statistics after two such forward passes, the second of half the pixels, which are twice as
        large: [2, 3, 12, 12]
    resnet_pixels.npz: what the processor of published ResNets makes of images
        images uint8 [2, 29, 23, 3]
        SIDE/preprocessor_config.json, and SIDE/pixels [2, 3, SIDE, SIDE], every `STEP`-th of them (`SIDES`)
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

HERE = pathlib.Path(__file__).parent.parent / "interop" / "vision"
NAMES = {0: "cat", 1: "dog", 2: "ox"}
CASES = {
    "resnet_basic": dict(layer_type="basic", hidden_sizes=[8, 12], depths=[1, 2], downsample_in_first_stage=True),
    "resnet_bottleneck": dict(layer_type="bottleneck", hidden_sizes=[16, 24], depths=[2, 1]),
    "resnet_early": dict(layer_type="bottleneck", hidden_sizes=[8, 16], depths=[1, 1], downsample_in_bottleneck=True),
}

SIDES = {14: 1, 384: 48}
"""Sides of images, and which of their pixels are kept: below 384 the middle is cut out."""


def pixels() -> dict:
    images = np.random.default_rng(0).integers(0, 256, (2, 29, 23, 3), dtype=np.uint8)
    found = {"images": images}
    for side, step in SIDES.items():
        processor = ConvNextImageProcessorPil(size={"shortest_edge": side}, crop_pct=0.875)
        made = processor(list(images), return_tensors="pt")["pixel_values"].numpy()
        values = json.loads(processor.to_json_string()) | {"image_processor_type": "ConvNextImageProcessor"}
        found[f"{side}/preprocessor_config.json"] = json.dumps(values)
        found[f"{side}/pixels"] = made[..., ::step, ::step]
    return found


def make(options: dict) -> dict:
    generator = torch.Generator().manual_seed(0)
    labels = dict(id2label=NAMES, label2id={name: number for number, name in NAMES.items()})
    config = transformers.ResNetConfig(embedding_size=8, **options, **labels)
    model = transformers.ResNetForImageClassification(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point():
                value += 0.2 * torch.randn(value.shape, generator=generator)
    pixels = torch.randn(4, 3, 12, 12, generator=generator)
    found = {"pixels": pixels.numpy(), "file/config.json": config.to_json_string(use_diff=False)}
    values = json.loads(found["file/config.json"]) | {"architectures": ["ResNetForImageClassification"]}
    found["file/config.json"] = json.dumps(values)
    found |= {f"weight/{name}": value.clone().numpy() for name, value in model.state_dict().items()}
    with torch.no_grad():
        found["out"] = model.eval()(pixels).logits.numpy()
        found["pooled"] = model.resnet(pixels).pooler_output.flatten(1).numpy()
    labels = torch.tensor([2, 0, 1, 1])
    logits = model.train()(pixels).logits
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    found |= {f"gradient/{name}": value.grad.numpy() for name, value in model.named_parameters()}
    with torch.no_grad():
        model(2 * pixels[:2])
    found |= {f"after/{name}": value.numpy() for name, value in model.named_buffers() if value.is_floating_point()}
    return found | {"labels": labels.int().numpy(), "trained": logits.detach().numpy(), "loss": loss.detach().numpy()}


def main():
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    for name, options in CASES.items():
        np.savez_compressed(HERE / f"{name}.npz", **make(options), versions=versions)
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes;", versions)
    np.savez_compressed(HERE / "resnet_pixels.npz", **pixels(), versions=versions)


if __name__ == "__main__":
    main()
