"""Every family against the PyTorch class of `transformers`, in both directions, on stored random weights.

make_interop_fixtures.py wrote the fixtures, and check_export_with_transformers.py has `transformers` load what is
exported here.
"""

import json

import folders
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import fmjax
from fmjax.interop.family import families, table_of
from fmjax.interop.weights import flatten, slots
from fmjax.objectives.causal_lm import CausalLM

PAD = 1
# Keys that say nothing about the function, or that older and newer readers need beside each other.
NOT_WRITTEN = ("transformers_version", "use_cache", "attention_dropout", "pretraining_tp")


@pytest.fixture(scope="module", params=folders.NAMES)
def case(request, tmp_path_factory):
    """(fixture, folder, model) of a family."""
    folder = folders.published(tmp_path_factory.mktemp("published") / request.param, request.param)
    return folders.read(request.param), folder, fmjax.load(folder)


def inputs_of(fixture, prefix=""):
    """A family's arrays under the names of the module's arguments, padding said by segment ids."""
    found = {key: fixture[prefix + key] for key in ("token_types", "source_tokens") if prefix + key in fixture}
    found["segment_ids"] = (fixture[prefix + "tokens"] != PAD).astype(np.int32)
    if "source_tokens" in found:
        found["source_segment_ids"] = (found["source_tokens"] != PAD).astype(np.int32)
    return found


def test_logits_of_padded_rows(case):
    fixture, _, model = case
    inputs = inputs_of(fixture)
    logits = model.apply(fixture["tokens"], **inputs)
    real = inputs["segment_ids"] > 0
    assert not real.all()
    np.testing.assert_allclose(logits[real], fixture["logits"][real], atol=1e-4)


def test_logits_of_a_packed_row(case):
    """Two documents in one row give what each gives alone."""
    fixture, _, model = case
    inputs = inputs_of(fixture, "piece_")
    lengths = inputs["segment_ids"].sum(1)

    def pack(rows, ids):
        return np.concatenate([row[mask > 0] for row, mask in zip(rows, ids)])[None]

    packed = {"segment_ids": pack(inputs["segment_ids"] * [[1], [2]], inputs["segment_ids"])}
    if "source_tokens" in inputs:
        ids = inputs["source_segment_ids"]
        packed["source_segment_ids"] = pack(ids * [[1], [2]], ids)
        packed["source_tokens"] = pack(inputs["source_tokens"], ids)
    if "token_types" in inputs:
        packed["token_types"] = pack(inputs["token_types"], inputs["segment_ids"])
    logits = model.apply(pack(fixture["piece_tokens"], inputs["segment_ids"]), **packed)[0]
    assert len(logits) == sum(lengths)
    np.testing.assert_allclose(logits[: lengths[0]], fixture["piece_logits_0"], atol=1e-4)
    np.testing.assert_allclose(logits[lengths[0] :], fixture["piece_logits_1"], atol=1e-4)


def test_saving_gives_the_published_folder_back(case, tmp_path):
    fixture, folder, model = case
    model.save(tmp_path / "saved", format="hf")
    weights, written = folders.part(fixture, "weight/"), load_file(tmp_path / "saved" / "model.safetensors")
    assert set(written) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    original = json.loads(str(fixture["config"]))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == original["architectures"] and config["model_type"] == original["model_type"]
    different = {k: (v, original[k]) for k, v in config.items() if k in original and v != original[k]}
    assert not different
    again = fmjax.load(tmp_path / "saved")
    assert again.module == model.module and again.config["model"] == model.config["model"]
    assert not list(tmp_path.glob(".*"))


def published_names(model, tree):
    """A tree like the parameters under published names, every tensor whole."""
    leaves = flatten(tree)
    (family,) = [f for f in families() if f.architectures[0] == model.config["published"]["architecture"]]
    found = {}
    for slot in slots(table_of(family, model.module), {path: leaf.shape for path, leaf in leaves.items()}):
        whole = found.setdefault(slot.name, np.zeros(slot.shape, np.float32))
        leaf = leaves[slot.path]
        slot.write(whole, (...,), np.asarray(leaf)[slot.place])
    return found


def causal_loss(model, fixture):
    tokens = fixture["tokens"][:1]
    batch = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], loss_weights=jnp.ones((1, 11)))

    def loss(params):
        value, weight = CausalLM(chunk_size=5)(model.module.apply, params, batch, None, True)["loss"]
        return value / weight

    return loss


def masked_loss(model, fixture):
    """Of the tokens in reverse order at every place, and of the class "not next"."""

    def loss(params):
        rows = dict(tokens=fixture["tokens"][:1], token_types=fixture["token_types"][:1])
        logits = model.module.apply({"params": params}, **rows)
        *_, next_sentence = model.module.apply({"params": params}, **rows, method="pretraining")
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return entropy(logits[0], rows["tokens"][0, ::-1]).mean() + entropy(next_sentence[0], 1)

    return loss


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_loss_and_gradients(name, tmp_path):
    fixture = folders.read(name)
    model = fmjax.load(folders.published(tmp_path, name))
    loss = (masked_loss if name == "bert" else causal_loss)(model, fixture)
    found, gradients = jax.jit(jax.value_and_grad(loss))(model.params)
    np.testing.assert_allclose(found, fixture["loss"], rtol=1e-5)
    expected = folders.part(fixture, "gradient/")
    named = published_names(model, gradients)
    assert set(named) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(named[key], value, atol=1e-4, err_msg=key)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mistral", dict(window=None)),
        ("gpt_neo", dict(window=5)),
        ("gemma3", dict(local_rope_theta=60.0)),
        ("qwen3", dict(rope_scaling=None)),
        ("llama", dict(rope_scaling=None)),
    ],
)
def test_the_options_of_the_fixtures_matter(name, change, tmp_path):
    fixture = folders.read(name)
    model = fmjax.load(folders.published(tmp_path, name))
    layers = dict(layer_pattern=()) if change.get("window", 1) is None else {}
    logits = model.module.clone(**change, **layers).apply({"params": model.params}, jnp.asarray(fixture["tokens"][:1]))
    assert abs(logits[0] - fixture["logits"][0]).max() > 1e-2


def test_padding_and_token_types_of_the_fixtures_matter(tmp_path):
    fixture = folders.read("bert")
    model = fmjax.load(folders.published(tmp_path, "bert"))
    inputs = inputs_of(fixture)
    for key in ("segment_ids", "token_types"):
        without = {k: v for k, v in inputs.items() if k != key}
        assert abs(model.apply(fixture["tokens"], **without)[1, :7] - fixture["logits"][1, :7]).max() > 1e-2
    _, _, next_sentence = model.module.apply(
        {"params": model.params}, fixture["tokens"], **inputs, method="pretraining"
    )
    np.testing.assert_allclose(next_sentence, fixture["next_sentence_logits"], atol=1e-4)
