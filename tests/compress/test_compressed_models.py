"""Models of any kind in few bits: images, two towers, a tied head, split over devices, and adapters beside them."""

import dataclasses

import jax
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.assemble import build_weights
from fmjax.checkpoint_files import load_params
from fmjax.compress import METHODS
from fmjax.errors import ConfigError, InputError
from fmjax.interop.initial import packed_section_of
from fmjax.interop.loading import model_section, placed
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import LoRAWeight, merged
from fmjax.objectives.cross_entropy import cross_entropy
from fmjax.training.loop import train
from tests.small_models import byte_model, random_model, stirred
from tests.two_towers import MODEL as TOWERS

VIT = {
    "name": "vit", "num_layers": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "patch_size": 4,
    "num_classes": 3, "image_size": 8, "num_channels": 1, "init_std": 0.3,
}  # fmt: skip
LLAMA = {
    "name": "llama", "num_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "num_kv_heads": 2,
    "max_length": 64, "vocab_size": 64, "init_std": 0.3,
}  # fmt: skip
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
TOKENS = np.arange(24).reshape(2, 12)


def packed(model) -> dict[str, QTensor]:
    leaves = jax.tree_util.tree_flatten_with_path(model.params, is_leaf=lambda x: isinstance(x, QTensor))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves if isinstance(x, QTensor)}


def in_floats(model):
    return dataclasses.replace(model, params=merged(model.params), kept={})


def vit():
    model = random_model(VIT)
    return dataclasses.replace(model, params=stirred(model.params))


@pytest.mark.parametrize(
    "make, inputs, count",
    [
        (vit, {"images": IMAGES}, 6),
        (lambda: TOWERS, {"images": IMAGES, "tokens": np.ones((3, 5), np.int32)}, 12),
    ],
)
def test_images_and_towers_compute_with_what_is_kept(make, inputs, count):
    model = make()
    made = METHODS.get("int8")().compress(model)
    assert len(packed(made)) == count and all("blocks" in name for name in packed(made))
    for found, expected in zip(*(jax.tree.leaves(one.apply(**inputs)) for one in (made, in_floats(made)))):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    whole = METHODS.get("int8")(activations="int8", patterns=("kernel$",)).compress(model)
    assert len(packed(whole)) > count
    flat = lambda outputs: np.concatenate([np.ravel(x) for x in jax.tree.leaves(outputs)])
    found, expected = (flat(one.apply(**inputs)) for one in (whole, model))
    assert 0 < np.max(np.abs(found - expected)) < 0.1 * np.max(np.abs(expected)) + 0.05


@pytest.mark.parametrize("tie", [False, True])
def test_tables_of_tokens_are_looked_up_and_are_heads_too(tie):
    model = random_model({**LLAMA, "tie_embeddings": tie})
    activations = "int8" if tie else "float"
    made = METHODS.get("int4")(block=16, tables=True, patterns=(), activations=activations).compress(model)
    assert set(packed(made)) == {"token_embedding/embedding", *([] if tie else ["head"])}
    assert packed(made)["token_embedding/embedding"].shape == (64, 32)
    floats = in_floats(made)
    np.testing.assert_allclose(made.apply(TOKENS), floats.apply(TOKENS), atol=0.2 if tie else 1e-5)
    if not tie:
        prompts = [[1, 2, 3], [4]]
        found, expected = (one.complete(prompts, max_new_tokens=4, temperature=0) for one in (made, floats))
        assert [x.tokens for x in found] == [x.tokens for x in expected]
        ones = np.ones(TOKENS.shape, np.float32)
        features = (one.module.apply(one.variables, TOKENS, method="features") for one in (made, floats))
        ours, theirs = (cross_entropy(*one, TOKENS, ones)["loss"] for one in features)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_devices_compute_what_one_computes(tmp_path):
    mesh = {"fsdp": 2, "tensor": 4}
    model = random_model({**LLAMA, "num_heads": 8, "num_kv_heads": 8})
    int4, mxfp4 = map(METHODS.get, ("int4", "mxfp4"))
    for method in (int4(block=16, double=True, tables=True), mxfp4()):
        made = method.compress(model)
        folder = tmp_path / method.name
        made.save(folder)
        split = fmjax.load(folder, mesh=mesh)
        assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(packed(split)))
        np.testing.assert_allclose(split.apply(TOKENS), made.apply(TOKENS), atol=1e-4)
        whole = fmjax.load(model_folder(model, tmp_path), mesh=mesh)
        table, kept = (one.params["token_embedding"]["embedding"] for one in (whole, split))
        if isinstance(kept, QTensor):  # which lies the other way round
            assert tuple(kept.codes.sharding.spec) == tuple(table.sharding.spec)[::-1]
        again = method.compress(whole)
        for one, other in zip(jax.tree.leaves(again.params), jax.tree.leaves(made.params)):
            np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=1e-5, atol=1e-6)


def model_folder(model, tmp_path):
    if not (tmp_path / "whole").exists():
        model.save(tmp_path / "whole")
    return tmp_path / "whole"


def config(folder, beneath):
    weights = {"name": "lora", "rank": 4, "patterns": ("mlp/.*kernel$",)}
    return {
        "train": {"steps": 2, "batch_size": 8, "init_from": str(folder), "eval_every": -1, "sample_every": -1},
        "mesh": {"data": -1, "fsdp": 2},
        "model": model_section(str(folder)),
        "weights": weights | ({"beneath": packed_section_of(folder)} if beneath else {}),
        "objective": {"name": "causal_lm"},
        "data": {"source": str(folder.parent / "text.txt"), "sequence_length": 16},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    }


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    (folder / "text.txt").write_text("A rose is a rose is a rose.\n" * 200)
    METHODS.get("int4")(block=8).compress(byte_model()).save(folder / "int4")
    return folder


@pytest.mark.parametrize("beneath", [False, True])
def test_adapters_train_beside_a_model_of_few_bits(few, beneath, tmp_path):
    base = fmjax.load(few / "int4")
    resolved = configs.resolve(config(few / "int4", beneath))
    train(resolved, tmp_path / "run", cache_dir=few / "cache", progress=False)
    run = fmjax.load(tmp_path / "run")
    up = lambda model: model.params["stack"]["blocks"]["mlp"]["up"]["kernel"]
    out = lambda model: model.params["stack"]["blocks"]["attention"]["out"]["kernel"]
    assert isinstance(out(run), QTensor) == isinstance(up(run), LoRAWeight) == beneath  # it is as it was trained
    whole = run.merged()
    np.testing.assert_array_equal(out(whole), out(base).value())
    assert np.max(np.abs(up(whole) - up(base).value())) > 1e-3
    if beneath:  # the very codes
        weights = build_weights(resolved)
        saved, _ = load_params(tmp_path / "run", shardings=placed(run.module, None, weights)[1])
        jax.tree.map(np.testing.assert_array_equal, up_of(saved).base, up(base))
        adapted = fmjax.load(few / "int4", adapters=tmp_path / "run")
        assert isinstance(up(adapted), LoRAWeight) and isinstance(up(adapted).base, QTensor)
        np.testing.assert_allclose(adapted.apply(TOKENS), run.apply(TOKENS), atol=1e-4)
        with pytest.raises(InputError, match="adapter of 'stack/blocks/mlp/down/kernel' cannot be merged .* of int4"):
            adapted.save(tmp_path / "merged")
        adapted.save(tmp_path / "adapter", format="peft")


def up_of(params):
    return params["stack"]["blocks"]["mlp"]["up"]["kernel"]


def test_what_lies_beneath_must_be_what_the_model_is(few, tmp_path):
    byte_model().save(tmp_path / "whole")
    with pytest.raises(InputError, match="is no model of few bits"):
        packed_section_of(tmp_path / "whole")
    wrong = config(few / "int4", True)
    wrong["train"]["init_from"] = str(tmp_path / "whole")
    with pytest.raises(ConfigError, match="is of floats there, and weights.beneath says"):
        train(configs.resolve(wrong), tmp_path / "run", cache_dir=few / "cache", progress=False)
    wrong["weights"]["base"] = "int4"
    with pytest.raises(ConfigError, match="weights.base = 'int4', and weights.beneath says"):
        configs.resolve(wrong)
