"""Writes tests/interop/vision/{clip,clip_first_eos,siglip,siglip2}.npz: published models of images and texts with
random weights, and what PyTorch computes.

Needs the `oracle` extra. Run from anywhere: python make_pair_fixtures.py [NAME ...]

    file/NAME: the JSON files of the folder as `save_pretrained` writes it; weight/NAME
    images uint8 [3, 11, 9, 3], pixels [3, 3, 8, 8]: of another size than the model's, and as the processor makes them
    tokens [3, 7], lengths [3]: texts and how many tokens each has, with its end; behind it the padding as processors
        fill it
    of siglip2 in place of images and pixels: image/N uint8 [H, W, 3], of several proportions, pixels [3, P, 4 * 4 * 3],
        ids [3, P] and grids [3, 2]: as the processor makes them
    image, text [3, D]: normalised vectors; logits [3, 3]: images by texts; loss, gradient/NAME
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from make_vision_fixtures import HERE, files_of, spread
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

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


def siglip2():
    tower = {name: value for name, value in VISION.items() if name != "image_size"}
    text = TEXT | dict(max_position_embeddings=LONG, pad_token_id=1, hidden_act="gelu_pytorch_tanh")
    config = transformers.Siglip2Config(text_config=text, vision_config=tower | {"num_patches": 9})
    processor = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=13)
    return transformers.Siglip2Model(config), processor, [row + [1] * (LONG - len(row)) for row in TEXTS]


def case(model, processor, rows, sizes=((11, 9),) * 3) -> dict:
    model = spread(model)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    draw = np.random.default_rng(0).integers
    images = [draw(0, 256, (*size, 3), np.uint8) for size in sizes]
    prepared, tokens = processor(images, return_tensors="pt"), torch.tensor(rows)
    out = model(input_ids=tokens, **prepared, return_loss=True)
    out.loss.backward()
    named = {"pixel_values": "pixels", "pixel_attention_mask": "ids", "spatial_shapes": "grids"}
    found = {named[name]: value.numpy() for name, value in prepared.items()}
    found |= {"images": np.stack(images)} if len(set(sizes)) == 1 else {f"image/{i}": x for i, x in enumerate(images)}
    found |= {
        "tokens": tokens.int().numpy(),
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
    cases["siglip2"] = lambda: (*siglip2(), ((11, 9), (5, 30), (20, 19)))
    for name in sys.argv[1:] or cases:
        np.savez_compressed(HERE / f"{name}.npz", **case(*cases[name]()), versions=versions)
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes;", versions)


if __name__ == "__main__":
    main()
