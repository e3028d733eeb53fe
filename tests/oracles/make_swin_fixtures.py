"""Writes tests/interop/vision/swin.npz and tests/oracles/cvt_embedding.npz: random weights, and what PyTorch computes.

Needs the `oracle` extra. Run from anywhere: python make_swin_fixtures.py

    swin.npz    a published Swin, shifted windows in its first stage and one window in its second:
        file/config.json, weight/NAME: the folder as `save_pretrained` writes it
        pixels [2, 3, 16, 16], out [2, classes], features [2, D, 4, 4], pooled [2, D]
        labels [2], loss, gradient/NAME: of the mean cross-entropy
    cvt_embedding.npz    CvT's convolutional embeddings, of a stem and of a later stage:
        NAME/x, NAME/target, NAME/out, NAME/weight/..., NAME/gradient/...: of the sum of out * target
"""

import pathlib
import tempfile

import numpy as np
import torch
import transformers
from make_vision_fixtures import NAMES, files_of, spread
from transformers.models.cvt.modeling_cvt import CvtConvEmbeddings

HERE = pathlib.Path(__file__).parent
EMBEDDINGS = {"stem": (7, 3, 6, 4, 2), "shrink": (3, 6, 8, 2, 1)}  # size, inputs, features, stride, padding


def swin() -> dict:
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[3, 2], num_heads=[2, 4], window_size=4, mlp_ratio=1.5,
        hidden_act="gelu_new", layer_norm_eps=1e-2, qkv_bias=False, drop_path_rate=0.2, attn_implementation="eager",
        id2label=NAMES, label2id={name: number for number, name in NAMES.items()},
    )  # fmt: skip
    model = spread(transformers.SwinForImageClassification(config))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model.swin(pixels)
    found = {"pixels": pixels.numpy(), "pooled": output.pooler_output.numpy()}
    found["features"] = output.last_hidden_state.transpose(1, 2).unflatten(2, (4, 4)).numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found |= files_of(pathlib.Path(folder))
    labels = torch.tensor([2, 0])
    logits = model(pixels).logits
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    found |= {"out": logits.detach().numpy(), "labels": labels.int().numpy(), "loss": loss.detach().numpy()}
    # Gradients of the parameters, written as the weights are: under the names of the files.
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        model.save_pretrained(folder)
        written = files_of(pathlib.Path(folder))
    return found | {k.replace("weight/", "gradient/"): v for k, v in written.items() if k.startswith("weight/")}


def cvt() -> dict:
    found, generator = {}, torch.Generator().manual_seed(2)
    for name, (size, inputs, features, stride, padding) in EMBEDDINGS.items():
        layer = spread(CvtConvEmbeddings(size, inputs, features, stride, padding))
        x = torch.randn(2, inputs, 16, 16, generator=generator)
        out = layer(x)
        target = torch.randn(out.shape, generator=generator)
        (out * target).sum().backward()
        found |= {f"{name}/x": x.numpy(), f"{name}/target": target.numpy(), f"{name}/out": out.detach().numpy()}
        for key, value in layer.named_parameters():
            found |= {f"{name}/weight/{key}": value.detach().numpy(), f"{name}/gradient/{key}": value.grad.numpy()}
    return found


def main():
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    for path, made in ((HERE.parent / "interop/vision/swin.npz", swin()), (HERE / "cvt_embedding.npz", cvt())):
        np.savez_compressed(path, **made, versions=versions)
        print(path.name, path.stat().st_size, "bytes;", versions)


if __name__ == "__main__":
    main()
