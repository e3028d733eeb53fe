"""DALL-E's prior: what each place sees, layer by mask; codes one after the other are the whole row."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.errors import ConfigError
from fmjax.layers.attention.reference import MASKED
from fmjax.models.dalle import Dalle
from fmjax.planning import counts, hlo
from tests.quick_keys import quick_key
from tests.small_models import applied

TEXT, SIDE, CODES = 5, 4, 7
MODULE = Dalle(
    num_layers=1, hidden_size=16, num_heads=2, num_codes=CODES, num_places=SIDE**2, vocab_size=11, max_length=TEXT,
    masks=("full",), last_mask="full", mask_kernel=3, dropout=0.0, init_std=0.3,
)  # fmt: skip
LAYERED = MODULE.clone(num_layers=4, masks=("row", "column"), last_mask="convolution")


def rows(seed=0, batch=2):
    rng = np.random.default_rng(seed)
    segments = np.ones((batch, TEXT), np.int32)
    segments[0, 3:] = 0
    tokens = rng.integers(1, 11, (batch, TEXT)).astype(np.int32) * segments
    return {"tokens": tokens, "segment_ids": segments, "codes": rng.integers(0, CODES, (batch, SIDE**2), np.int32)}


def params_of(module):
    return nn.unbox(module.init(quick_key(0), **rows()))["params"]


@pytest.mark.parametrize("mask", ["full", "row", "column", "convolution"])
def test_a_place_sees_what_its_mask_lets_it(mask):
    """In one layer: changing a code changes what is said after the places that attend it, and nothing else."""
    module, told = MODULE.clone(last_mask=mask), rows()
    params = params_of(module)
    run = jax.jit(lambda codes: module.apply({"params": params}, told["tokens"], told["segment_ids"], codes))
    before = run(told["codes"])
    for place in range(SIDE**2):
        codes = told["codes"].copy()
        codes[:, place] = (codes[:, place] + 1) % CODES
        changed = np.abs(run(codes) - before).max((0, 2)) > 1e-6

        def attends(query):
            ahead, column = query - place, query % SIDE - place % SIDE
            nearby = any(ahead == up * SIDE + along for up in (0, 1) for along in (-1, 0, 1))
            near = {"full": True, "row": ahead <= SIDE, "column": column == 0, "convolution": nearby}[mask]
            return ahead >= 0 and near

        # What stands after place q is said at TEXT + q + 1; what stands after the last is not asked.
        expected = [False] * (TEXT + 1) + [attends(query) for query in range(SIDE**2 - 1)]
        np.testing.assert_array_equal(changed, expected)


def test_every_place_sees_the_text_before_it_and_each_padding_is_a_vector_of_its_own():
    params, told = params_of(LAYERED), rows()
    run = jax.jit(lambda params, tokens: LAYERED.apply({"params": params}, **told | {"tokens": tokens}))
    before = run(params, told["tokens"])
    tokens = told["tokens"].copy()
    tokens[1, 2] = tokens[1, 2] % 10 + 1
    apart = np.abs(run(params, tokens) - before)[1].max(-1)
    assert (apart[:3] == 0).all() and (apart[3:] > 0).all()
    tokens = told["tokens"].copy()
    tokens[0, 3:] = 9
    np.testing.assert_array_equal(run(params, tokens), before)  # of padding nothing is read
    table = params["text_padding"]["embedding"].at[3].add(jnp.arange(16.0))
    apart = np.abs(run(params | {"text_padding": {"embedding": table}}, told["tokens"]) - before).max(-1)
    assert (apart[0, :4] == 0).all() and (apart[0, 4:] > 0).all() and (apart[1] == 0).all()


def test_logits_are_of_the_places_own_modality():
    logits = applied(LAYERED, {"params": params_of(LAYERED)}, **rows())
    assert logits.shape == (2, TEXT + SIDE**2, 11 + CODES)
    allowed = np.arange(11 + CODES)[None] < 11
    np.testing.assert_array_equal(
        (logits[0] > MASKED), np.where(np.arange(len(logits[0]))[:, None] < TEXT, allowed, ~allowed)
    )


def test_one_code_after_the_other_is_the_whole_row():
    params, told = params_of(LAYERED), rows()
    expected = applied(LAYERED, {"params": params}, **told)[:, TEXT:, 11:]
    module, unrolled = LAYERED.unrolled(params)
    apply = jax.jit(
        lambda *given, method: module.apply({"params": unrolled}, *given, method=method), static_argnames="method"
    )
    logits, cache = apply(told["tokens"], told["segment_ids"], module.init_cache(2), method="first_code")
    np.testing.assert_allclose(logits, expected[:, 0], atol=1e-5)
    for place in range(SIDE**2 - 1):
        logits, cache = apply(told["codes"][:, place], jnp.int32(place), cache, method="next_code")
        np.testing.assert_allclose(logits, expected[:, place + 1], atol=1e-5)


def test_formula_is_the_compilers_count():
    module = MODULE.clone(hidden_size=128, attention="reference", last_mask="row")
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), **rows()))["params"]
    loss = lambda params, told: jnp.mean(module.apply({"params": params}, **told) ** 2)
    compiled = jax.jit(jax.grad(loss)).lower(params, rows(batch=1)).compile()
    found = counts.count(hlo.parse(compiled.as_text()), {}).flops
    length = TEXT + SIDE**2
    # Text sees the text before it, a place all of that and up to SIDE places before its own.
    pairs = sum(min(i, TEXT) + 1 if i <= TEXT else TEXT + 1 + min(i - TEXT, SIDE + 1) for i in range(length))
    masked = length**2 - pairs
    assert found == pytest.approx(module.flops_per_example({}) + 3 * 4 * masked * 128, rel=0.02)


@pytest.mark.parametrize("fields, message", [
    (dict(num_places=15), "num_places = 15 is not the number of places of a square"),
    (dict(masks=("rows",)), "model.masks='rows' is not known"),
    (dict(last_mask="convolution", mask_kernel=5), r"kernel=5: expected an odd number up to 4"),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        MODULE.clone(**fields)
