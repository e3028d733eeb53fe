"""What a teacher adds to a task: divergences and activations, for texts, images and pairs."""

import pathlib
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax import config as configs
from fmjax.config import build
from fmjax.errors import ConfigError
from fmjax.layers.transformer import unstack_layers
from fmjax.layers.transformer_config import TransformerConfig
from fmjax.models import MODELS
from fmjax.objectives import OBJECTIVES
from fmjax.objectives.base import OtherModel
from fmjax.objectives.matching import Match, Seen, match_sums
from fmjax.training.loop import train
from tests.quick_keys import quick_key
from tests.small_models import random_model, stirred

STORED = np.load(pathlib.Path(__file__).parents[1] / "oracles" / "distillation.npz")
RNG = np.random.default_rng(1)


def test_matched_activations_are_distilberts_and_tinyberts():
    reads = lambda x: {"stack": {"blocks": {"residual": jnp.asarray(x)[None]}}}
    hidden = [Seen(None, reads(x)) for x in STORED["hidden"]]
    # Scores of queries against one-hot keys are the queries' own numbers.
    config = TransformerConfig(1, 8, 8, 2, 2, 4, query_scale=1.0, causal=False)
    keys = jnp.broadcast_to(jnp.eye(4)[:, None], (2, 4, 2, 4))
    attention = lambda x: {"q": jnp.asarray(x).transpose(0, 2, 1, 3)[None], "k": keys[None]}
    seen = lambda x: Seen(types.SimpleNamespace(transformer=config), {"stack": {"blocks": {"attention": attention(x)}}})
    maps = [seen(x) for x in STORED["scores"]]
    for match, models, name in (
        (Match(loss="cosine"), hidden, "distilbert/cos"), (Match(), hidden, "tinybert/hidden"),
        (Match(of="attention_scores"), maps, "tinybert/scores"),
    ):  # fmt: skip
        (total, places), = match_sums({"one": match}, *models).values()
        np.testing.assert_allclose(total / places, STORED[name], rtol=1e-5)


@pytest.mark.parametrize("ids", ["segment_ids", "image_ids"])
@pytest.mark.parametrize("of", ["residual", "attention_scores", "attention_probabilities"])
def test_padding_of_either_model_never_counts_and_the_tasks_weights_do(of, ids):
    """Beside sums of the squares that numpy makes; what a stack of texts and one of patches call their padding."""
    config = TransformerConfig(1, 8, 8, 2, 2, 4, query_scale=1.0, causal=True)
    module = types.SimpleNamespace(transformer=config, **({"vocab_size": 5} if ids == "segment_ids" else {}))
    rng = np.random.default_rng(3)
    sizes = {"residual": (2, 5, 8), "q": (2, 5, 2, 4), "k": (2, 5, 2, 4)}
    ours, theirs = ({name: rng.normal(size=size) for name, size in sizes.items()} for _ in range(2))
    padding = [np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]), np.array([[1, 1, 1, 0, 0], [2, 2, 2, 2, 0]])]
    both = (padding[0] > 0) & (padding[1] > 0)
    weights = np.array([[0.5, 1, 0, 3, 1], [2, 1, 1, 0.25, 1]], np.float32)

    def sums(*models):
        seen = []
        for x, own in zip(models, padding):
            x = {name: jnp.asarray(one)[None] for name, one in x.items()}
            reads = {"residual": x["residual"], "attention": {"q": x["q"], "k": x["k"]}}
            seen.append(Seen(module, {"stack": {"blocks": reads}}, {ids: jnp.asarray(own)}))
        return match_sums({"one": Match(of=of)}, *seen, jnp.asarray(weights))["one"]

    def apart():
        if of == "residual":
            return ((ours["residual"] - theirs["residual"]) ** 2).mean(-1)
        maps, mine = [], []
        for x, own in zip((ours, theirs), padding):
            scores = np.einsum("bthd,bshd->bhts", x["q"], x["k"])
            mine.append(np.tril(own[:, :, None] == own[:, None]) & (own > 0)[:, :, None])
            shares = np.exp(scores) * mine[-1][:, None]
            maps.append(shares / np.maximum(shares.sum(-1, keepdims=True), 1e-9) if "prob" in of else scores)
        squares = ((maps[0] - maps[1]) ** 2).mean(1)
        keys = mine[0] & mine[1]
        return (squares * keys).sum(-1) / np.maximum(keys.sum(-1), 1)

    # Of patches the weights of tokens say whether a row counts.
    each = both * (weights if ids == "segment_ids" else 1.0)
    np.testing.assert_allclose(sums(ours, theirs), [(apart() * each).sum(), each.sum()], rtol=1e-5)
    before = sums(ours, theirs)
    for x, own in zip((ours, theirs), padding):
        for one in x.values():
            one[own == 0] += 7.0
    np.testing.assert_array_equal(sums(ours, theirs), before)


def test_activations_without_places_or_of_others_are_refused():
    seen = lambda *shape: Seen(None, {"pooled": jnp.ones(shape)})
    match = {"one": Match(of="pooled")}
    with pytest.raises(ConfigError, match=r"matches.one: pooled of the student has the shape \(2, 8\), no places"):
        match_sums(match, seen(2, 8), seen(2, 8))
    with pytest.raises(ConfigError, match="matches.one: pooled has 1 places in the student, 4 in the teacher"):
        match_sums(match, seen(2, 1, 8), seen(2, 4, 8))


def made(section, seed=0):
    module = build(section, MODELS)
    inputs = {name: jnp.zeros(one.shape, one.dtype) for name, one in module.example().items()}
    params = nn.unbox(jax.jit(lambda key: module.init(key, **inputs)["params"])(quick_key(seed)))
    return module, stirred(params, seed)


def loss_of(objective, module, params, teacher, batch, key=None):
    """(the sums, the gradient of the loss's mean) in one program."""

    def mean(params):
        sums = objective(module.apply, params, batch, key, True, models={"teacher": teacher})
        terms = sums["loss"] if isinstance(sums["loss"][0], tuple) else (sums["loss"],)
        return sum(value / weight for value, weight in terms), sums

    gradient, sums = jax.jit(jax.grad(mean, has_aux=True))(params)
    return sums, gradient


def kl(teacher, student, t):
    p, q = (jax.nn.log_softmax(np.asarray(x) / t) for x in (teacher, student))
    return np.sum(np.exp(p) * (p - q), axis=-1)


BERT = {"name": "bert", "hidden_size": 8, "num_heads": 2, "vocab_size": 13, "max_length": 6, "dropout": 0.0,
        "attention_dropout": 0.0}  # fmt: skip


def test_masked_tokens_are_compared_where_they_are_masked():
    """Beside next sentences, whose loss has a weight of its own; hidden states and maps without padding, of all tokens
    of rows that count."""
    objective = build({
        "name": "masked_lm_distillation", "teacher": "x", "weight": 0.75, "temperature": 2.0,
        "matches": {"hidden": {"loss": "mse", "weight": 0.5}, "scores": {"of": "attention_scores", "layers": (1, 2)}},
    }, OBJECTIVES)  # fmt: skip
    (module, params), (other, theirs) = made(BERT | {"num_layers": 2}), made(BERT | {"num_layers": 4}, 3)
    ids = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], np.int32)
    batch = {
        "tokens": RNG.integers(1, 13, (3, 6)), "targets": RNG.integers(1, 13, (3, 6)), "segment_ids": ids,
        "masked_positions": np.array([[1, 4], [2, 0], [0, 0]]), "next_sentence_labels": np.array([1, 0, 0]),
        "loss_weights": np.array([[0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0] * 6], np.float32),
    }  # fmt: skip
    sums, _ = loss_of(objective, module, params, OtherModel(other, theirs), batch)

    def told(module, params):
        inputs = {name: batch[name] for name in ("tokens", "segment_ids")}
        logits, state = module.apply({"params": params}, **inputs, mutable=["reads"])
        return logits, state["reads"]["stack"]["blocks"]

    (ours, mine), (logits, reads) = told(module, params), told(other, theirs)
    apart = kl(logits, ours, 2.0)
    np.testing.assert_allclose(sums["divergence"], [apart[0, 1] + apart[0, 4] + apart[1, 2], 3], rtol=1e-4)
    squares = np.mean((mine["residual"] - reads["residual"][np.array([1, 3])]) ** 2, -1).sum(0)
    np.testing.assert_allclose(sums["match_hidden"], [(squares * ids)[:2].sum(), 10], rtol=1e-4)
    scores = lambda found, layer: 0.5 * np.einsum("bthd,bshd->bhts", *(found["attention"][n][layer] for n in "qk"))
    total = 0.0
    for s, t in ((0, 1), (1, 2)):
        squares = np.mean((scores(mine, s) - scores(reads, t)) ** 2, axis=1)
        total += squares[0].mean(-1).sum() + squares[1, :4, :4].mean(-1).sum()
    np.testing.assert_allclose(sums["match_scores"], [total, 10], rtol=1e-4)
    masked, following, divergence, hidden, maps = sums["loss"]
    for term, (value, weight), factor in (
        (masked, sums["masked_lm_loss"], 0.25), (following, sums["next_sentence_loss"], 0.25),
        (divergence, sums["divergence"], 0.75 * 4), (hidden, sums["match_hidden"], 0.5),
        (maps, sums["match_scores"], 1.0),
    ):  # fmt: skip
        np.testing.assert_allclose(term, [factor * value, weight], rtol=1e-5)


VIT = {"name": "vit", "hidden_size": 8, "intermediate_size": 16, "num_heads": 2, "image_size": 4, "num_channels": 1,
       "patch_size": 2, "num_classes": 3}  # fmt: skip


def test_classes_and_hidden_states_of_another_width_scanned_as_unrolled():
    wide = VIT | {"hidden_size": 12, "num_layers": 4}
    objective = build({
        "name": "classification_distillation", "teacher": "x", "weight": 1.0, "temperature": 3.0,
        "matches": {"hidden": {"loss": "cosine"}, "maps": {"of": "attention_probabilities", "layers": "last"}},
    }, OBJECTIVES)  # fmt: skip
    other = OtherModel(*made(wide, 3))
    batch = {"images": RNG.normal(size=(5, 4, 4, 1)), "labels": RNG.integers(0, 3, 5)}
    batch["loss_weights"] = weights = np.array([1, 0, 0.5, 2, 1])
    batch = {name: jnp.asarray(x, jnp.int32 if name == "labels" else jnp.float32) for name, x in batch.items()}
    section = {"name": "projected", "student": VIT | {"num_layers": 2}, "width": 12}
    module, params = made(section)
    objective.check_models(module, {"teacher": other})
    sums, gradient = loss_of(objective, module, params, other, batch, jax.random.key(0))
    told = [m.apply({"params": p}, batch["images"], mutable=["reads"]) for m, p in
            ((module.student, params["student"]), (other.module, other.params))]  # fmt: skip
    np.testing.assert_allclose(sums["divergence"], [(kl(told[1][0], told[0][0], 3.0) * weights).sum(), 4.5], rtol=1e-4)
    ours, theirs = (state["reads"]["stack"]["blocks"]["residual"] for _, state in told)
    a, b = ours @ params["projections_hidden"]["kernel"], theirs[np.array([1, 3])]
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(sums["match_hidden"], [((1 - cosines).sum(0).T * weights).sum(), 5 * 4.5], rtol=1e-4)
    (divergence, rows), *rest = sums["loss"]
    np.testing.assert_allclose([divergence, rows], [9 * sums["divergence"][0], 4.5], rtol=1e-5)
    assert len(rest) == 2 and np.abs(gradient["projections_hidden"]["kernel"]).max() > 1e-4
    unrolled = build(section | {"student": section["student"] | {"scan_layers": False}}, MODELS)
    params = unstack_layers(params)
    again, other_gradient = loss_of(objective, unrolled, params, other, batch, jax.random.key(0))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-6)
    jax.tree.map(close, (again, other_gradient), (sums, unstack_layers(gradient)))


def test_pairs_keep_the_teachers_affinities():
    """Of both ways; rows without weight are nobody's neighbours."""
    objective = build({"name": "contrastive_distillation", "teacher": "x", "temperature": 1.0}, OBJECTIVES)
    said = [{"image": x[0], "text": x[1], "scale": 3.0} for x in RNG.normal(size=(2, 2, 4, 5))]
    weights = jnp.array([1.0, 1.0, 0.0, 1.0])
    batch = {"loss_weights": weights}
    student, teacher = (objective.said(one, batch)[0] for one in said)
    found = objective.between(teacher, student, weights)
    there = np.array([0, 1, 3])
    logits = [3.0 * (one["image"] @ one["text"].T)[np.ix_(there, there)] for one in said]
    expected = 0.5 * (kl(logits[1], logits[0], 1.0).sum() + kl(logits[1].T, logits[0].T, 1.0).sum())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "matches, student, message",
    [
        ({"a": {"of": "residul"}}, {}, r"matches.a.of, of the student, = 'residul'.*did you mean 'residual'"),
        ({"a": {}}, {"hidden_size": 4}, "a: stack/residual has .4,. numbers a place in the student, .8,. in the teach"),
        ({"a": {}}, {"patch_size": 1}, "a: stack/residual has 17 places in the student, 5 in the teacher"),
        ({"a": {"of": "attention_scores"}}, {"num_heads": 4}, "the student has 4 heads, the teacher 2"),
        ({"a": {}}, {"num_layers": 3}, "a.layers = 'every' cuts the teacher's 4 layers into 3 equal parts"),
        ({"a": {"layers": (-1, -1)}}, {}, "compares no layer"),
        ({"a": {}}, {"num_classes": 5}, "tells 3 classes apart, the model 5"),
    ],
)
def test_what_cannot_be_matched_is_refused_before_anything_is_computed(matches, student, message):
    section = {"name": "classification_distillation", "teacher": "x", "matches": matches}
    objective = build(section, OBJECTIVES)
    module, teacher = build(VIT | {"num_layers": 2} | student, MODELS), build(VIT | {"num_layers": 4}, MODELS)
    with pytest.raises(ConfigError, match=message):
        objective.check_models(module, {"teacher": OtherModel(teacher)})


def test_a_projected_student_is_trained_and_loaded_alone(tmp_path, one_device):
    digits = {"image_size": 8, "num_classes": 10}
    random_model(VIT | digits | {"hidden_size": 12, "num_layers": 2}).save(tmp_path / "teacher")

    config = configs.resolve({
        "train": {"steps": 2, "batch_size": 8, "eval_every": -1, "tensorboard": False}, "mesh": {"data": 1},
        "model": {"name": "projected", "student": VIT | digits | {"num_layers": 1}, "width": 12},
        "objective": {"name": "classification_distillation", "teacher": str(tmp_path / "teacher"),
                      "matches": {"hidden": {"layers": "last"}}},
        "data": {"name": "digits", "max_shift": 0}, "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    })  # fmt: skip
    metrics = train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    assert metrics["train/match_hidden"] > 0
    model = fmjax.load(tmp_path / "run")
    assert type(model.module).__name__ == "ViT" and model.config["model"]["name"] == "vit"
    assert model.apply(images=np.zeros((1, 8, 8, 1), np.float32)).shape == (1, 10)
