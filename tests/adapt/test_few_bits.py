"""Kernels of few bits: read one by one, kept so in a loaded model, and merged where they are written."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from small_models import applied, byte_model

import fmjax
from fmjax.adapt.lora import LoRA
from fmjax.checkpoint_files import save_params
from fmjax.data.tokenizers.loading import ByteTokenizer
from fmjax.errors import InputError
from fmjax.inference.fingerprint import model_fingerprint
from fmjax.interop.initial import initial_params
from fmjax.interop.loading import placed
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import LoRAWeight, ScaledWeight, bare, merged

WEIGHTS = LoRA(rank=2, base="nf4", base_block=4, dora=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(a model, the folder where it is "saved", and "published" as GPT-2)."""
    folder = tmp_path_factory.mktemp("base")
    model = byte_model()
    model.save(folder / "saved")
    model.save(folder / "published", format="hf")
    return model, folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """(what a run of DoRA beside four bits leaves, its parameters)."""
    model, folder = base
    params = WEIGHTS.attach(model.params, jax.random.key(1))
    query = params["stack"]["blocks"]["attention"]["query"]
    kernel = query["kernel"]
    query["kernel"] = kernel.replace(b=kernel.b + 0.3, magnitude=1.1 * kernel.magnitude)
    workdir = tmp_path_factory.mktemp("run") / "run"
    save_params(workdir, params)
    section = {"name": "lora"} | dataclasses.asdict(WEIGHTS)
    config = {**model.config, "weights": section, "train": {"init_from": str(folder / "saved")}}
    (workdir / "config.json").write_text(json.dumps(config))
    ByteTokenizer().save(workdir)
    return workdir, params


def floats() -> int:
    """Bytes of the arrays of float32 that there are."""
    return sum(x.nbytes for x in jax.live_arrays() if x.dtype == np.float32)


@pytest.mark.parametrize("kind", ["saved", "published"])
def test_parameters_are_read_and_quantized_one_by_one(base, kind):
    model, folder = base
    shapes, shardings = placed(model.module, None)
    made, begun, seen = WEIGHTS.stored(shapes), floats(), []

    def watched(make):
        def one(kernel):
            seen.append((floats() - begun, kernel.nbytes))
            return make(kernel)

        return one

    stored = {path: watched(make) for path, make in made.items()}
    found = initial_params(str(folder / kind), model.module, shapes, shardings, stored=stored)
    assert len(seen) == len(made) == 6
    stay = sum(x.nbytes for x in jax.tree.leaves(found) if x.dtype == np.float32)
    assert all(there <= stay + kernel for there, kernel in seen)
    assert stay + max(kernel for _, kernel in seen) < 0.8 * sum(x.nbytes for x in jax.tree.leaves(model.params))
    expected = bare(WEIGHTS.attach(model.params, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    again = WEIGHTS.attach(found, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, again, WEIGHTS.attach(model.params, jax.random.key(0)))


def test_a_run_of_few_bits_is_loaded_in_few_bits(run, base):
    workdir, params = run
    model, tokens = fmjax.load(workdir), np.arange(12)[None]
    blocks = model.params["stack"]["blocks"]
    query, up = blocks["attention"]["query"]["kernel"], blocks["mlp"]["up"]["kernel"]
    assert isinstance(query, ScaledWeight) and isinstance(query.base, LoRAWeight)
    assert isinstance(query.base.base, QTensor) and isinstance(up, QTensor)
    expected = applied(model.module, {"params": merged(params)}, tokens)
    np.testing.assert_allclose(model.apply(tokens), expected, atol=1e-4)
    assert np.abs(base[0].apply(tokens) - expected).max() > 0.5
    drawn = model.complete([[5, 6, 7]], max_new_tokens=4, temperature=0)[0].tokens
    logits = np.asarray(model.apply(np.asarray([[5, 6, 7, *drawn[:-1]]])))
    assert logits[0, 2:].argmax(-1).tolist() == drawn
    half = fmjax.load(workdir, dtype="bfloat16")
    query = half.params["stack"]["blocks"]["attention"]["query"]["kernel"]
    assert (query.columns.dtype, query.base.base.scales.mean.dtype, query.base.a.dtype) == (
        np.float32, np.float32, jax.numpy.bfloat16,
    )  # fmt: skip
    np.testing.assert_allclose(np.asarray(half.apply(tokens), np.float32), expected, atol=0.3)


def test_a_model_of_few_bits_is_written_in_floats_and_no_base_of_other_adapters(run, base, tmp_path):
    workdir, params = run
    model, tokens = fmjax.load(workdir), np.arange(12)[None]
    expected = model.apply(tokens)
    for format in ("fmjax", "hf"):
        model.save(tmp_path / format, format=format)
        whole = fmjax.load(tmp_path / format)
        assert jax.tree.structure(whole.params) == jax.tree.structure(base[0].params)
        np.testing.assert_allclose(whole.apply(tokens), expected, atol=1e-4)
    np.testing.assert_allclose(model.merged().apply(tokens), expected, atol=1e-4)
    with pytest.raises(InputError, match="was trained beside other weights"):
        fmjax.load(workdir, adapters=workdir)


def test_the_fingerprint_knows_a_scale_that_is_in_no_array(run):
    workdir, _ = run
    model = fmjax.load(workdir)
    rescaled = jax.tree.map(
        lambda x: x.replace(scale=2 * x.scale) if isinstance(x, LoRAWeight) else x, model.params,
        is_leaf=lambda x: isinstance(x, LoRAWeight),
    )  # fmt: skip
    other = dataclasses.replace(model, params=rescaled)
    assert model_fingerprint(model) != model_fingerprint(other)
