"""Writes tests/interop/vision/{mae,vit_resized,image_gpt}.npz: models of `transformers` with random weights, and what
PyTorch computes. Needs the `oracle` extra. Run from anywhere: python make_mae_fixtures.py

    mae.npz    a folder: `file/NAME`, `weight/NAME`; pixels [2, 3, 8, 8], noise [2, 16]; out [2, 16, 12]: what the
        decoder draws; mask [2, 16], loss, and `gradient/NAME` of what trains; features [2, 17, 16]: of the encoder's
        class, on whole images
    vit_resized.npz    a folder of images of 16 x 16; pixels24, pixels12; out24, out12: with
        `interpolate_pos_encoding`
    image_gpt.npz    a folder with its processor; images uint8 [2, 5, 5, 3], colours [2, 25]: as the processor makes
        them; out [2, 25, 6]: logits; loss, and `gradient/NAME`; middle [2, 16]: what goes into the second layer's
        attention, the mean over pixels
"""

import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

HERE = pathlib.Path(__file__).parent.parent / "interop" / "vision"


def spread(model):
    """The model with weights at which every one that trains matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.25 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def folder_of(*saved) -> dict[str, np.ndarray]:
    """The JSON files and tensors of the folder that models and processors are saved in."""
    with tempfile.TemporaryDirectory() as folder:
        for one in saved:
            one.save_pretrained(folder)
        files = {f"file/{path.name}": path.read_text() for path in sorted(pathlib.Path(folder).glob("*.json"))}
        tensors = load_file(pathlib.Path(folder) / "model.safetensors")
    return files | {f"weight/{name}": value.numpy() for name, value in tensors.items()}


def gradients_of(model) -> dict[str, np.ndarray]:
    """The gradients, under the names of the files; zeros of what does not train."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    return {k.replace("weight/", "gradient/"): v for k, v in folder_of(model).items() if k.startswith("weight/")}


def images(seed: int, size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(seed))


def mae() -> dict:
    config = transformers.ViTMAEConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=2,
        hidden_act="gelu_new", layer_norm_eps=1e-2, qkv_bias=True, decoder_hidden_size=12, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=3, decoder_intermediate_size=20, mask_ratio=0.7, norm_pix_loss=True,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.ViTMAEForPreTraining(config)
    # A class made of a config alone has zeros there; published weights have the sines and cosines that these write.
    model.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    model.vit.embeddings.initialize_weights()
    model.decoder.initialize_weights(16)
    model = spread(model)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    pixels = images(1, 8)
    found = folder_of(model) | {"pixels": pixels.numpy(), "noise": noise.numpy()}
    output = model(pixels, noise=noise)
    output.loss.backward()
    found |= {name: getattr(output, key).detach().numpy() for name, key in dict(out="logits", mask="mask").items()}
    model.vit.config.mask_ratio = 0.0
    with torch.no_grad():
        in_order = torch.arange(16.0).expand(2, 16)
        found["features"] = model.vit(pixels, noise=in_order).last_hidden_state.numpy()
    model.vit.config.mask_ratio = 0.7
    return found | {"loss": output.loss.detach().numpy()} | gradients_of(model)


def vit_resized() -> dict:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=4,
        num_labels=3, attn_implementation="eager",
    )  # fmt: skip
    model = spread(transformers.ViTForImageClassification(config))
    found = folder_of(model)
    for size in (24, 12):
        pixels = images(size, size)
        with torch.no_grad():
            out = model(pixels, interpolate_pos_encoding=True).logits
        found |= {f"pixels{size}": pixels.numpy(), f"out{size}": out.numpy()}
    return found


def image_gpt() -> dict:
    config = transformers.ImageGPTConfig(
        vocab_size=7, n_positions=25, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = transformers.ImageGPTForCausalImageModeling(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln_" in name:
                weight.fill_(1.0)
    model = spread(model)
    rng = np.random.default_rng(3)
    processor = ImageGPTImageProcessorPil(
        clusters=rng.uniform(-1, 1, (6, 3)).astype(np.float32).tolist(), size={"height": 5, "width": 5}
    )
    pictures = rng.integers(0, 256, (2, 5, 5, 3), np.uint8)
    colours = processor(list(pictures), return_tensors="pt")["input_ids"]
    tokens = torch.cat([torch.full((2, 1), 6), colours[:, :-1]], dim=1)
    out = model(tokens, output_hidden_states=True)
    logits, middle = out.logits, model.transformer.h[1].ln_1(out.hidden_states[1]).mean(dim=1)
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 6), colours.reshape(-1))
    loss.backward()
    found = folder_of(model, processor) | {"images": pictures, "colours": colours.numpy()}
    found |= {"middle": middle.detach().numpy()}
    return found | {"out": logits.detach().numpy(), "loss": loss.detach().numpy()} | gradients_of(model)


def main():
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    for name, make in dict(mae=mae, vit_resized=vit_resized, image_gpt=image_gpt).items():
        np.savez_compressed(HERE / f"{name}.npz", **make(), versions=versions)
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes;", versions)


if __name__ == "__main__":
    main()
