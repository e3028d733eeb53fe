"""Folders of several parts, as diffusers publishes them: the Diffusion Transformer, in its pipeline, alone and back."""

import json

import folders
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import load_file

import fmjax
from fmjax.data.codecs.image import ImageCodec
from fmjax.data.codecs.label import LabelCodec
from fmjax.errors import CheckpointError, ConfigError, InputError
from fmjax.hub import IGNORED, PATTERNS
from fmjax.interop.family import publish
from fmjax.interop.loading import model_section
from fmjax.layers.modulation import NO_LABEL
from fmjax.models.dit import DiT

NAMES = ("cat", "dog, hound", "ox")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(fixture, folder, model) of the pipeline."""
    return folders.loaded_vision(tmp_path_factory.mktemp("published"), "dit")


def test_the_transformer_computes_what_it_was_trained_to(case):
    fixture, _, model = case
    labels = np.where(fixture["labels"] == 3, NO_LABEL, fixture["labels"])
    times = np.float32(fixture["times"] / 1000)
    found = model.apply(inputs=fixture["images"].transpose(0, 2, 3, 1), times=times, labels=labels)
    np.testing.assert_allclose(found, fixture["out"].transpose(0, 2, 3, 1), atol=1e-4 * abs(fixture["out"]).max())
    assert model.codecs == {"label": LabelCodec(3, NAMES), "image": ImageCodec(4, 4)}


@pytest.mark.parametrize("by", ["name", "folder"])
def test_a_part_is_loaded_alone(case, by):
    _, folder, model = case
    part = fmjax.load(folder, part="transformer") if by == "name" else fmjax.load(folder / "transformer")
    assert part.module == model.module and part.codecs == {"label": LabelCodec(3)}
    assert model_section(folder) == model_section(folder / "transformer") == part.config["model"]


@pytest.mark.parametrize("whole", [True, False])
def test_saving_gives_the_published_folder_back(case, whole, tmp_path):
    fixture, folder, _ = case
    saved, weights = tmp_path / "saved", folders.part(fixture, "weight/transformer/")
    index = json.loads((folder / "model_index.json").read_text()) | {"vae": [None, None]}  # whose weights are not there
    alone = fixture | {"file/model_index.json": json.dumps(index)}
    model = fmjax.load(folders.write_vision(tmp_path / "alone", alone))
    (model if whole else fmjax.load(folder, part="transformer")).save(saved, format="hf")
    written = load_file((saved / "transformer" if whole else saved) / "diffusion_pytorch_model.safetensors")
    assert set(written) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    config = json.loads((saved / ("transformer/config.json" if whole else "config.json")).read_text())
    original = json.loads(str(fixture["file/transformer/config.json"]))
    assert {k: v for k, v in config.items() if original[k] != v} == {"norm_eps": 1e-6}  # as it was trained
    if whole:
        index = json.loads((saved / "model_index.json").read_text())
        assert index["transformer"] == ["diffusers", "DiTTransformer2DModel"]
        assert index["id2label"] == {str(i): name for i, name in enumerate(NAMES)}
    again = fmjax.load(saved)
    assert again.module == model.module and again.codecs["label"].names == (NAMES if whole else ())


def test_a_run_of_ours_has_a_published_class(tmp_path):
    sizes = dict(num_layers=2, hidden_size=16, num_heads=2, image_size=8, num_channels=1, num_classes=10)
    family, values = publish(DiT(**sizes))
    assert family.architectures == ("DiTTransformer2DModel",) and values["attention_head_dim"] == 8
    with pytest.raises(InputError, match="no model without classes"):
        publish(DiT(**sizes | {"num_classes": 0}))
    with pytest.raises(InputError, match="intermediate_size=64, not 32"):
        publish(DiT(**sizes, intermediate_size=32))


def test_parts_that_are_not_there_or_not_known_are_named_when_asked_for(case, tmp_path):
    fixture, folder, _ = case
    with pytest.raises(InputError, match="of one part; leave part out"):
        fmjax.load(folder / "transformer", part="transformer")

    def changed(name, **changes):
        other = folders.write_vision(tmp_path / name, fixture)
        index = json.loads((other / "model_index.json").read_text()) | changes
        (other / "model_index.json").write_text(json.dumps(index))
        return other

    other = changed("part", vae=["diffusers", "AutoencoderTiny"])
    with pytest.raises(
        InputError, match="part 'vae' of .* is of class AutoencoderTiny, which no family knows; .*transformer .DiTTr"
    ):
        fmjax.load(other, part="vae")
    with pytest.raises(
        InputError, match="no part 'transfomer'; did you mean 'transformer'.*vae .AutoencoderTiny, not known"
    ):
        fmjax.load(other, part="transfomer")
    other = changed("unknown", _class_name="FluxPipeline")
    with pytest.raises(
        InputError, match="no family is a FluxPipeline.*part=NAME.*transformer .DiTTransformer2DM"
    ):
        fmjax.load(other)
    assert fmjax.load(other, part="transformer").module.num_classes == 3
    with pytest.raises(InputError, match="no part 'transformer'; model_index.json has it without a class"):
        fmjax.load(changed("absent", transformer=[None, None]))
    missing = changed("missing")
    (missing / "transformer" / "config.json").unlink()
    with pytest.raises(InputError, match="lists the part 'transformer', but there is no transformer/config.json"):
        fmjax.load(missing)


def test_blocks_with_conditions_of_their_own_are_refused(case, tmp_path):
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    other = case[0] | {f"weight/transformer/{name}": case[0][f"weight/transformer/{name}"] + 1}
    with pytest.raises(CheckpointError, match=f"{name}' should repeat 'transformer.*blocks.0.*but is different$"):
        fmjax.load(folders.write_vision(tmp_path / "different", other))
    del other[f"weight/transformer/{name}"]
    with pytest.raises(CheckpointError, match=f"{name}', which repeats .* is missing"):
        fmjax.load(folders.write_vision(tmp_path / "missing", other))


def test_options_of_the_class_that_are_another_function_are_refused(case, tmp_path, caplog):
    folder = folders.write_vision(tmp_path / "published", case[0])
    path = folder / "transformer" / "config.json"
    values = json.loads(path.read_text())
    fmjax.load(folder)
    assert "computed as the weights were trained, with norm_eps = 1e-06" in caplog.text
    for change in (dict(norm_type="layer_norm"), dict(activation_fn="geglu"), dict(norm_eps=0.1)):
        path.write_text(json.dumps(values | change))
        with pytest.raises(ConfigError, match=f"{next(iter(change))} = "):
            fmjax.load(folder)


def test_a_download_takes_folders_of_parts_and_no_weights_twice():
    wanted = ["model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"]
    wanted += ["unet/diffusion_pytorch_model-00001-of-00002.safetensors", "text_encoder/model.safetensors"]
    others = ["transformer/diffusion_pytorch_model.bin", "transformer/diffusion_pytorch_model.fp16.safetensors"]
    others += ["text_encoder/pytorch_model.bin", "text_encoder/model.onnx", "text_encoder/model.fp16.safetensors"]
    others += ["checkpoint-500/model.safetensors", "checkpoint-500/model-00001-of-00002.safetensors"]
    patterns = dict(allow_patterns=list(PATTERNS), ignore_patterns=list(IGNORED))
    assert list(filter_repo_objects(wanted + others, **patterns)) == wanted
