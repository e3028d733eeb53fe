"""Writes tests/interop/vision/{clip,clip_first_eos,siglip}.npz: published models of images and texts with random
weights, and what PyTorch computes.

Needs the `oracle` extra. Run from anywhere: python make_pair_fixtures.py

    file/NAME: the JSON files of the folder as `save_pretrained` writes it; weight/NAME
    images uint8 [3, 11, 9, 3], pixels [3, 3, 8, 8]: of another size than the model's, and as the processor makes them
    tokens [3, 7], lengths [3]: texts and how many tokens each has, with its end; behind it the padding as processors
        fill it
    image, text [3, D]: normalised vectors; logits [3, 3]: images by texts; loss, gradient/NAME
"""

import pathlib
import tempfile

import numpy as np
import torch
import transformers
from make_vision_fixtures import HERE, files_of, spread
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

VOCAB, LENGTH, LONG = 20, 7, 8
TOWER = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, layer_norm_eps=1e-2)
VISION = dict(**TOWER, image_size=8, patch_size=4)
TEXT = dict(**TOWER, vocab_size=VOCAB, bos_token_id=18)
SHORTER = dict(crop_size={"height": 8, "width": 8})
BEGIN, END = 18, 19
TEXTS = [[BEGIN, 3, 7, 5, END], [BEGIN, 4, END], [BEGIN, 9, 2, 11, 6, 3, END]]


def clip(end: int):
    text = TEXT | dict(max_position_embeddings=LENGTH, eos_token_id=end, pad_token_id=0)
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION | {"hidden_size": 24}, projection_dim=12)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 9}, **SHORTER)
    return transformers.CLIPModel(config), processor, [row + [0] * (LENGTH - len(row)) for row in TEXTS]


def siglip():
    text = TEXT | dict(max_position_embeddings=LONG, pad_token_id=1, hidden_act="gelu_pytorch_tanh")
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    processor = SiglipImageProcessorPil(size={"height": 8, "width": 8})
    return transformers.SiglipModel(config), processor, [row + [1] * (LONG - len(row)) for row in TEXTS]


def case(model, processor, rows) -> dict:
    model = spread(model)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    images = np.random.default_rng(0).integers(0, 256, (3, 11, 9, 3), np.uint8)
    pixels, tokens = processor(list(images), return_tensors="pt")["pixel_values"], torch.tensor(rows)
    out = model(input_ids=tokens, pixel_values=pixels, return_loss=True)
    out.loss.backward()
    found = {
        "images": images, "pixels": pixels.numpy(), "tokens": tokens.int().numpy(),
        "lengths": np.array([len(row) for row in TEXTS], np.int32), "loss": out.loss.detach().numpy(),
        "image": out.image_embeds.detach().numpy(), "text": out.text_embeds.detach().numpy(),
        "logits": out.logits_per_image.detach().numpy(),
    }  # fmt: skip
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        found |= files_of(pathlib.Path(folder))
        # Gradients of the parameters, written as the weights are: under the names of the files.
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        model.save_pretrained(folder)
        weights = {name: value for name, value in files_of(pathlib.Path(folder)).items() if name.startswith("weight/")}
    return found | {name.replace("weight/", "gradient/"): value for name, value in weights.items()}


def main():
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    cases = {"clip": lambda: clip(2), "clip_first_eos": lambda: clip(END), "siglip": siglip}
    for name, make in cases.items():
        np.savez_compressed(HERE / f"{name}.npz", **case(*make()), versions=versions)
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes;", versions)


if __name__ == "__main__":
    main()
