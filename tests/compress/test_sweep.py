"""GPTQ and SparseGPT against the papers' algorithms written down in numpy, one column after another, and against least
squares."""

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.compress.gptq import gptq
from fmjax.compress.importance import Pattern
from fmjax.compress.sparsegpt import sparsegpt
from fmjax.compress.sweep import product_error
from fmjax.errors import ConfigError
from fmjax.layers.quantized import Quantization

ROWS, OUT = 48, 12


def data(seed=0, rows=ROWS, out=OUT, correlated=True):
    """(kernel [in, out], inputs [n, in] whose channels have much in common)."""
    drawn = np.random.default_rng(seed)
    x = drawn.normal(size=(400, rows))
    if correlated:
        x = 0.2 * x + drawn.normal(size=(400, rows // 6)) @ drawn.normal(size=(rows // 6, rows))
    return drawn.normal(size=(rows, out)), x


def inverse(gram, damping=0.01):
    gram = gram.copy()
    dead = np.diag(gram) == 0
    gram[dead, dead] = 1
    return np.linalg.inv(gram + damping * np.mean(np.diag(gram)) * np.eye(len(gram))), dead


def one_by_one(kernel, gram, quantize, damping=0.01, order=None):
    """Optimal Brain Quantization in a fixed order, by its own formula (GPTQ, equations 2 and 3): after each column the
    inverse of what is left is that of H without it. `quantize(row, number, what is left)` gives the row."""
    w = kernel.copy()
    inv, dead = inverse(gram, damping)
    w[dead] = 0
    left = list(range(len(w)) if order is None else order)
    while left:
        q = left[0]
        new = quantize(w, q, inv)
        error = (w[q] - new) / inv[q, q]
        rest = left[1:]
        w[rest] -= inv[rest, q][:, None] * error
        w[q] = new
        inv = inv - np.outer(inv[:, q], inv[q]) / inv[q, q]
        left = rest
    return w


def int4(scale):
    return lambda row: np.clip(np.round(row / scale), -7, 7) * scale


@pytest.mark.parametrize("group, act_order, static", [(16, False, False), (0, True, False), (16, True, True)])
def test_gptq_is_the_papers_algorithm(group, act_order, static):
    kernel, x = data()
    kernel[:, 3], x[:, 5] = np.where(np.arange(ROWS) % 4 < 2, 0, kernel[:, 3]), 0  # pruned; an input that never comes
    gram = x.T @ x
    order = np.argsort(-np.diag(gram), kind="stable") if act_order else np.arange(ROWS)
    size, scales = group or ROWS, {}
    fixed = np.where(np.arange(ROWS)[:, None] == 5, 0, kernel)

    def quantize(w, q, inv):
        block = q // size
        if block not in scales:
            of = fixed if static else w
            scales[block] = np.abs(of[block * size : (block + 1) * size]).max(0) / 7
        return np.where(kernel[q] == 0, 0, int4(scales[block])(w[q]))

    if act_order and not static:
        scales[0] = np.abs(fixed).max(0) / 7
    expected = one_by_one(kernel, gram, quantize, order=order)
    made, lost = gptq(
        jnp.asarray(kernel, jnp.float32), jnp.asarray(gram, jnp.float32), Quantization("int4", group),
        act_order=act_order, static=static, keep_zeros=True,
    )  # fmt: skip
    np.testing.assert_allclose(made.value(), expected, atol=2e-4)
    assert not np.any(np.asarray(made.value())[5]) and np.all(np.asarray(made.value())[kernel == 0] == 0)
    np.testing.assert_allclose(lost, lost_share(fixed, expected, x), rtol=1e-2)


def test_zeros_of_a_dense_kernel_make_up_for_what_is_lost_unless_they_are_to_stay():
    kernel, x = data(6)
    kernel[1::3] = 0
    arguments = jnp.asarray(kernel, jnp.float32), jnp.asarray(x.T @ x, jnp.float32), Quantization("int4", 16)
    (free, lost), (kept, lost_more) = (gptq(*arguments, keep_zeros=keep) for keep in (False, True))
    assert not np.any(np.asarray(kept.value())[1::3]) and np.mean(np.asarray(free.value())[1::3] != 0) > 0.05
    assert lost < 0.8 * lost_more


def lost_share(kernel, changed, x):
    return np.sum((x @ (kernel - changed)) ** 2) / np.sum((x @ kernel) ** 2)


def decibel(kernel, changed, x):
    return -10 * np.log10(lost_share(kernel, np.asarray(changed), x))


def test_gptq_loses_less_than_rounding_where_inputs_are_correlated():
    kernel, x = data(1)
    gram, exact = jnp.asarray(x.T @ x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    for format in ("int4", "nf4", "uint4"):
        kind = Quantization(format, 16)
        rounded, swept = kind.quantize(exact).value(), gptq(exact, gram, kind)[0].value()
        assert decibel(kernel, swept, x) > decibel(kernel, rounded, x) + 6, format
    # Inputs that have nothing in common leave nothing to make up for.
    kernel, x = data(2, correlated=False)
    kind = Quantization("int4", 0)
    rounded = kind.quantize(jnp.asarray(kernel, jnp.float32)).value()
    swept = gptq(jnp.asarray(kernel, jnp.float32), jnp.eye(ROWS), kind)[0].value()
    np.testing.assert_allclose(swept, rounded, atol=1e-6)


def test_gptq_of_two_inputs_is_the_best_second_number():
    """The second weight, before it is rounded, is the one that makes up best for the first (a parabola's minimum)."""
    kernel = np.array([[0.34], [0.5]])
    gram = np.array([[1.0, 0.8], [0.8, 1.0]])
    scale = 0.5 / 7
    first = np.round(0.34 / scale) * scale
    best = 0.5 + gram[0, 1] / gram[1, 1] * (0.34 - first)
    second = np.clip(np.round(best / scale), -7, 7) * scale
    made, _ = gptq(jnp.asarray(kernel, jnp.float32), jnp.asarray(gram, jnp.float32), Quantization("int4", 0), 0.0)
    np.testing.assert_allclose(np.asarray(made.value())[:, 0], [first, second], atol=1e-6)


def test_options_of_gptq_that_do_not_fit_are_refused():
    kernel, gram = jnp.ones((32, 4)), jnp.eye(32)
    with pytest.raises(ConfigError, match="act_order = True rounds inputs in another order than blocks of 8 of 32"):
        gptq(kernel, gram, Quantization("int4", 8), act_order=True)
    with pytest.raises(ConfigError, match="set static = True"):
        gptq(kernel, gram, Quantization("int4", 8, double=True))
    assert np.isnan(gptq(kernel, -gram, Quantization("int4", 8))[1])


def test_sparsegpt_is_the_papers_algorithm():
    kernel, x = data(3)
    gram, block = x.T @ x, 16
    kept = {}

    def prune(w, q, inv):
        if q % block == 0:  # the diagonal of the factor is what is left of the inverse when a column's turn comes
            diagonal, left = [], inv.copy()
            for i in range(q, q + block):
                diagonal.append(left[i, i])
                left = left - np.outer(left[:, i], left[i]) / left[i, i]
            scores = w[q : q + block] ** 2 / np.asarray(diagonal)[:, None]
            kept[q // block] = scores > np.sort(scores.ravel())[scores.size // 2 - 1]
        return np.where(kept[q // block][q % block], w[q], 0)

    expected = one_by_one(kernel, gram, prune)
    args = jnp.asarray(kernel, jnp.float32), jnp.asarray(gram, jnp.float32)
    made, lost = sparsegpt(*args, Pattern.parse("0.5"), block)
    np.testing.assert_allclose(made, expected, atol=2e-3)
    assert (np.asarray(made) == 0).sum() == ROWS * OUT // 2
    np.testing.assert_allclose(lost, lost_share(kernel, expected, x), rtol=1e-2)
    pattern = Pattern.parse("2:4")
    made, lost = sparsegpt(*args, pattern)
    assert ((np.asarray(made).reshape(-1, 4, OUT) != 0).sum(1) == 2).all()
    plain = np.where(pattern.kept(jnp.asarray(kernel**2 * np.diag(gram)[:, None])), kernel, 0)
    assert decibel(kernel, made, x) > decibel(kernel, plain, x) + 2


def pruned_n_of_m(kernel, gram, zeros, group, block, damping=0.01):
    """SparseGPT's algorithm 1 with a mask of n:m (section 3.4), W [out, in] as there: the mask of `group` columns is
    chosen when the first of them is reached, in each row those of least w^2 over the squared diagonal of the factor.

    Returns (W [in, out], mask [in, out], True where a weight stays).
    """
    w = kernel.T.copy()
    upper = np.linalg.cholesky(inverse(gram, damping)[0]).T
    rows, columns = w.shape
    mask = np.ones((rows, columns), bool)
    for i in range(0, columns, block):
        errors = np.zeros((rows, block))
        for j in range(i, i + block):
            if j % group == 0:
                cost = w[:, j : j + group] ** 2 / np.diag(upper)[j : j + group] ** 2
                least = np.argsort(cost, axis=1)[:, :zeros]
                np.put_along_axis(mask[:, j : j + group], least, False, axis=1)
            errors[:, j - i] = np.where(mask[:, j], 0, w[:, j]) / upper[j, j]
            w[:, j : i + block] -= np.outer(errors[:, j - i], upper[j, j : i + block])
        w[:, i + block :] -= errors @ upper[i : i + block, i + block :]
    return np.where(mask, w, 0).T, mask.T


@pytest.mark.parametrize("zeros, group", [(2, 4), (5, 8)])
def test_sparsegpt_of_n_in_m_is_the_papers_algorithm(zeros, group):
    kernel, x = data(5)
    gram = x.T @ x
    expected, mask = pruned_n_of_m(kernel, gram, zeros, group, 16)
    pattern = Pattern.parse(f"{group - zeros}:{group}")
    made, lost = sparsegpt(jnp.asarray(kernel, jnp.float32), jnp.asarray(gram, jnp.float32), pattern)
    np.testing.assert_array_equal(np.asarray(made) != 0, mask)
    np.testing.assert_allclose(made, expected, atol=2e-3)
    np.testing.assert_allclose(lost, lost_share(kernel, expected, x), rtol=1e-2)
    at_once = pattern.kept(jnp.asarray((kernel / np.diag(np.linalg.cholesky(inverse(gram)[0]).T)[:, None]) ** 2))
    assert np.any(np.asarray(at_once) != mask)  # the weights as they are by then decide


def test_one_column_removed_is_least_squares():
    """All else that is left is what a regression onto the product finds."""
    kernel, x = data(4, 8, 1)
    keep = np.array([[False]] + [[True]] * 7)
    # Scores such that the first input goes: a share of 1 / 8.
    kernel[0], expected = 1e-3, np.zeros((8, 1))
    expected[1:] = np.linalg.lstsq(x[:, 1:], x @ kernel, rcond=None)[0]
    made, _ = sparsegpt(
        jnp.asarray(kernel, jnp.float32), jnp.asarray(x.T @ x, jnp.float32), Pattern(1 / 8), damping=0.0
    )
    assert ((np.asarray(made) != 0) == keep).all()
    np.testing.assert_allclose(made, expected, atol=1e-4)
    assert product_error(jnp.zeros((8, 1)), jnp.zeros((8, 1)), jnp.eye(8)) == 0
