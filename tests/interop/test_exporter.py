"""Published folders out: several files and an index, all or nothing, and what belongs beside the weights."""

import json

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import fmjax
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.interop import exporter
from fmjax.interop.exporter import whole_folder
from fmjax.layers.weights import Turned
from fmjax.load import Model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fmjax.load(folders.published(tmp_path_factory.mktemp("published"), "llama"))


def test_a_large_model_is_written_in_several_files(model, tmp_path):
    model.save(tmp_path / "saved", format="hf", max_shard_size=8_000)
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    found = {}
    for file in files:
        with safe_open(tmp_path / "saved" / file, "numpy") as stream:  # the library's own checks of the format
            assert stream.metadata() == {"format": "pt"}
            part = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        assert sum(value.nbytes for value in part.values()) <= 8_000
        assert all(index["weight_map"][name] == file for name in part)
        found |= part
    weights = folders.part(folders.read("llama"), "weight/")
    assert set(found) == set(weights) and all(np.array_equal(found[name], value) for name, value in weights.items())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in weights.values())


def test_half_precision_is_written_as_it_is(model, tmp_path):
    half = Model(model.module, jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params))
    half.save(tmp_path / "saved", format="hf")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"
    again = fmjax.load(tmp_path / "saved", dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, again.params, half.params)


def test_parameters_of_an_unrolled_stack_are_written_too(model, tmp_path):
    module, params = model.module.unrolled(model.params)
    Model(module, params).save(tmp_path / "saved", format="hf")
    jax.tree.map(np.testing.assert_array_equal, fmjax.load(tmp_path / "saved").params, model.params)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_are_read_into_the_form_to_decode_with_and_written_from_it(family, tmp_path):
    folder = folders.published(tmp_path / "published", family)
    model, made = fmjax.load(folder), fmjax.load(folder, unrolled=True)
    assert isinstance(made.params["stack"]["blocks_0"]["mlp"]["up"]["kernel"], Turned)
    unrolled = model.unrolled()
    jax.tree.map(np.testing.assert_array_equal, made.params, unrolled.params)
    assert made.module == unrolled.module
    own = {id(x) for x in jax.tree.leaves(made.params)}
    assert {id(x) for x in jax.tree.leaves(made.engine.weights)} == own
    prompt = [[3, 1, 4, 1, 5]]
    ours, theirs = (m.complete(prompt, max_new_tokens=6, temperature=0)[0].tokens for m in (made, model))
    assert ours == theirs
    for format in ("hf", "fmjax"):
        made.save(tmp_path / format, format=format)
    jax.tree.map(np.testing.assert_array_equal, fmjax.load(tmp_path / "hf").params, model.params)


def test_token_ids_are_those_of_the_tokenizer_or_what_the_model_came_with(model, tmp_path):
    module = model.module.clone(vocab_size=258)
    params = jax.tree.map(lambda x: jnp.pad(x, ((0, 229), (0, 0))) if x.shape[0] == 29 else x, model.params)
    params["head"] = jnp.pad(params["head"], ((0, 0), (0, 229)))
    Model(module, params, tokenizer=ByteTokenizer()).save(tmp_path / "ours", format="hf")
    ids = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "ours" / file).read_text()).items() >= ids.items()
    assert fmjax.load(tmp_path / "ours").tokenizer.fingerprint == "bytes"
    folder = folders.published(tmp_path / "published", "llama", eos_token_id=[5, 6])
    generation = {"eos_token_id": [5, 6], "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    fmjax.load(folder).save(tmp_path / "again", format="hf")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == [5, 6]
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == generation


def test_a_bert_with_a_next_sentence_head_is_published_with_it(tmp_path):
    """Published BERTs call themselves BertForMaskedLM, whose class has no such head, whatever their files hold."""
    folder = folders.published(tmp_path / "first", "bert", architectures=["BertForMaskedLM"])
    fmjax.load(folder).save(tmp_path / "again", format="hf")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["BertForPreTraining"]


def test_what_is_there_already_is_not_overwritten(model, tmp_path):
    model.save(tmp_path / "saved", format="hf")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    with pytest.raises(InputError, match="saved' already holds a model"):
        model.save(tmp_path / "saved", format="hf")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="notes' is not an empty folder"):
        model.save(tmp_path / "notes", format="hf")
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty", format="hf")
    assert fmjax.load(tmp_path / "empty").module == model.module


def test_a_save_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporter, "_gather", full)
    with pytest.raises(OSError, match="No space"):
        model.save(tmp_path / "saved", format="hf")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "other") as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_published_leaves_nothing(model, tmp_path):
    with pytest.raises(InputError, match="layer_pattern"):
        Model(model.module.clone(window=3, layer_pattern=("local", "global")), model.params).save(
            tmp_path / "saved", format="hf"
        )
    with pytest.raises(InputError, match="format='onnx' is not known"):
        model.save(tmp_path / "saved", format="onnx")
    assert list(tmp_path.iterdir()) == []
