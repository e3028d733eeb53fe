"""`transformers` and `diffusers` load what fmjax saves, with equal outputs. Needs them and the fixtures of
make_vision_fixtures.py, make_resnet_fixtures.py, make_swin_fixtures.py, make_unet_fixtures.py, make_mmdit_fixtures.py,
make_pair_fixtures.py and make_stable_diffusion_fixture.py; ends with exit code 1 where one differs:

    python tests/oracles/check_vision_exports.py

On 2026-11-29, torch 2.14.1, transformers 5.24.0 and diffusers 0.42.1: ViT to 4.8e-7, without a head to 2.7e-7, DiT to
the last bit, as are CLIP and SigLIP, and, with torch 2.13.0, the U-Nets, AutoencoderKL and StableDiffusionPipeline.
"""

import pathlib
import sys
import tempfile

import diffusers
import torch
import transformers

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "interop"), str(HERE.parent.parent)]

import folders  # noqa: E402
from make_mmdit_fixtures import CASES as MMDITS  # noqa: E402
from make_resnet_fixtures import CASES as RESNETS  # noqa: E402
from make_unet_fixtures import UNETS  # noqa: E402
from make_vision_fixtures import as_trained  # noqa: E402

import fmjax  # noqa: E402


def pytorch(model_class, folder: pathlib.Path):
    """The class with the folder's weights; a missing, unexpected or misshapen tensor ends the check."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    # A counter that PyTorch reads only where batch statistics have no momentum.
    counted = lambda value: [one for one in value if not str(one).endswith(".num_batches_tracked")]
    wrong = {key: counted(value) for key, value in info.items() if counted(value)}
    if wrong:
        raise SystemExit(f"{folder}: {wrong}")
    return model.eval()


def vit_output(model_class, folder, fixture):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(list(fixture["images"]), return_tensors="pt")["pixel_values"]
    output = pytorch(model_class, folder)(pixels)
    return output.logits if "logits" in output else output.pooler_output


def resnet_output(model_class, folder, fixture):
    return pytorch(model_class, folder)(torch.tensor(fixture["pixels"])).logits


def pair_output(model_class, folder, fixture):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(list(fixture["images"]), return_tensors="pt")["pixel_values"]
    tokens = torch.tensor(fixture["tokens"]).long()
    return pytorch(model_class, folder)(input_ids=tokens, pixel_values=pixels).logits_per_image


def dit_output(model_class, folder, fixture):
    model = pytorch(model_class, folder / "transformer")
    as_trained(model)
    images, times, labels = (torch.tensor(fixture[name]) for name in ("images", "times", "labels"))
    return model(images, timestep=times, class_labels=labels).sample


def unet_output(model_class, folder, fixture):
    names = dict(labels="class_labels", memory="encoder_hidden_states", mask="encoder_attention_mask")
    given = {theirs: torch.tensor(fixture[name]) for name, theirs in names.items() if name in fixture}
    return pytorch(model_class, folder)(torch.tensor(fixture["inputs"]), torch.tensor(fixture["times"]), **given).sample


def mmdit_output(model_class, folder, fixture):
    inputs, memory, vector, times = (torch.tensor(fixture[name]) for name in ("inputs", "memory", "vector", "times"))
    return pytorch(model_class, folder)(inputs, memory, vector, times).sample


def autoencoder_output(model_class, folder, fixture):
    model = pytorch(model_class, folder)
    return model.decode(model.encode(torch.tensor(fixture["images"])).latent_dist.mode()).sample


def pipeline_output(model_class, folder, fixture):
    pipeline, noise = model_class.from_pretrained(folder), torch.tensor(fixture["noise"])
    options = dict(latents=noise, guidance_scale=4.0, num_inference_steps=5, height=8, width=8, output_type="np")
    return torch.tensor(pipeline(str(fixture["prompt"]), **options).images)


def main() -> int:
    failed = False
    for name, model_class, output in (
        ("vit", transformers.ViTForImageClassification, vit_output),
        ("vit_headless", transformers.ViTModel, vit_output),
        *((name, transformers.ResNetForImageClassification, resnet_output) for name in RESNETS),
        ("swin", transformers.SwinForImageClassification, resnet_output),
        ("clip", transformers.CLIPModel, pair_output),
        ("clip_first_eos", transformers.CLIPModel, pair_output),
        ("siglip", transformers.SiglipModel, pair_output),
        ("dit", diffusers.DiTTransformer2DModel, dit_output),
        *((name, model_class, unet_output) for name, (model_class, _) in UNETS.items()),
        *((name, diffusers.SD3Transformer2DModel, mmdit_output) for name in MMDITS),
        ("autoencoder_kl", diffusers.AutoencoderKL, autoencoder_output),
        ("stable_diffusion", diffusers.StableDiffusionPipeline, pipeline_output),
    ):
        fixture = folders.read_vision(name)
        with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
            folder = pathlib.Path(temporary)
            published = folders.write_vision(folder / "published", fixture)
            part = published / "part"
            fmjax.load(part if part.is_dir() else published).save(folder / "saved", format="hf")
            expected = fixture[next(name for name in ("logits", "out", "decoded", "guided") if name in fixture)]
            gap = abs(output(model_class, folder / "saved", fixture).numpy() - expected).max()
        failed |= gap > 1e-4
        print(f"{name}: largest difference {gap:.1e}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, diffusers {diffusers.__version__}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
