"""Writes tests/interop/vision/*.npz: published models of images with random weights, and what PyTorch computes.

Needs the `oracle` extra and diffusers. Run from anywhere: python make_vision_fixtures.py

    vit.npz, vit_headless.npz    `file/NAME`: the JSON files of the folder as `save_pretrained` writes it; `weight/NAME`
        images uint8 [2, 11, 9, 3], pixels [2, 3, 8, 8]: of another size than the model's, and as the processor makes
        them; out: logits [2, classes], or the headless class's pooled [2, D]; hidden [2, 5, D]: the last layer's output
        labels [2], loss, gradient/NAME: of the mean cross-entropy
    dit.npz    a pipeline's folder: JSON files, `weight/transformer/NAME`
        images [3, 4, 4, 4], times [3], labels [3] (the last stands for none), out [3, 8, 4, 4]: of the transformer as
        it was trained (see fmjax/interop/dit.py)

Every option that the classes have is on.
"""

import pathlib
import tempfile

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

HERE = pathlib.Path(__file__).parent.parent / "interop" / "vision"
SIZES = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4,
    hidden_act="gelu_new", layer_norm_eps=1e-2, qkv_bias=False,
)  # fmt: skip
NAMES = {0: "cat", 1: "dog, hound", 2: "ox"}


def spread(model):
    """The model with weights at which every one matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.25 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def files_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The JSON files and tensors of a folder and those in it."""
    found = {f"file/{path.relative_to(folder)}": path.read_text() for path in sorted(folder.rglob("*.json"))}
    for path in sorted(folder.rglob("*.safetensors")):
        within = f"{path.parent.relative_to(folder)}/" if path.parent != folder else ""
        found |= {f"weight/{within}{name}": value.numpy() for name, value in load_file(path).items()}
    return found


def vit(model_class, **options) -> dict:
    model = spread(model_class(transformers.ViTConfig(**SIZES, **options, attn_implementation="eager")))
    processor = ViTImageProcessorPil(
        size={"height": 8, "width": 8}, resample=3, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 11, 9, 3), np.uint8)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    output = model(pixels, output_hidden_states=True)
    found = {"images": images, "pixels": pixels.numpy()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        found |= files_of(pathlib.Path(folder))
    if "logits" not in output:
        return found | {
            "out": output.pooler_output.detach().numpy(),
            "hidden": output.last_hidden_state.detach().numpy(),
        }
    labels = torch.tensor([2, 0])
    loss = torch.nn.functional.cross_entropy(output.logits, labels)
    loss.backward()
    # Gradients of the parameters, written as the weights are: under the names of the files.
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        model.save_pretrained(folder)
        gradients = {
            k.replace("weight/", "gradient/"): v for k, v in files_of(pathlib.Path(folder)).items() if k[0] == "w"
        }
    found |= {"out": output.logits.detach().numpy(), "labels": labels.int().numpy(), "loss": loss.detach().numpy()}
    return found | gradients


def dit() -> dict:
    options = dict(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=4
    )
    model = spread(diffusers.DiTTransformer2DModel(**options, patch_size=2, num_embeds_ada_norm=3))
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    pipeline = diffusers.DiTPipeline(transformer=model, vae=vae, scheduler=diffusers.DDIMScheduler())
    pipeline.register_to_config(id2label={str(number): name for number, name in NAMES.items()})
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        found = {
            name: value for name, value in files_of(pathlib.Path(folder)).items() if not name.startswith("weight/vae")
        }
    as_trained(model)
    generator = torch.Generator().manual_seed(1)
    images, times, labels = (
        torch.randn(3, 4, 4, 4, generator=generator),
        torch.tensor([0, 250, 999]),
        torch.tensor([0, 2, 3]),
    )
    with torch.no_grad():
        out = model(images, timestep=times, class_labels=labels).sample
    inputs = dict(images=images.numpy(), times=times.int().numpy(), labels=labels.int().numpy())
    return found | inputs | {"out": out.numpy()}


def as_trained(model) -> None:
    """Puts right where diffusers' class, as it is made, differs from the published model."""
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6


def main():
    HERE.mkdir(exist_ok=True)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, diffusers {diffusers.__version__}"
    labels = dict(id2label=NAMES, label2id={name: number for number, name in NAMES.items()})
    cases = {
        "vit": lambda: vit(transformers.ViTForImageClassification, **labels),
        "vit_headless": lambda: vit(transformers.ViTModel),
        "dit": dit,
    }
    for name, make in cases.items():
        np.savez_compressed(HERE / f"{name}.npz", **make(), versions=versions)
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes;", versions)


if __name__ == "__main__":
    main()
