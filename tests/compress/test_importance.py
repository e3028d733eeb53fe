"""Which weights go: exactly as many as promised, the least by their worth."""

import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.compress.importance import Pattern, magnitude, wanda
from fmjax.errors import ConfigError

KERNEL = np.random.default_rng(0).normal(size=(12, 5))


def test_patterns_leave_what_they_promise():
    scores = jnp.asarray(np.random.default_rng(1).integers(0, 3, size=(12, 5)))  # many are equal
    assert (np.asarray(Pattern.parse("0.5").kept(scores)).sum(0) == 6).all()
    assert np.asarray(Pattern.parse("0.3").kept(scores, across=True)).sum() == 60 - 18
    for text, group, stay in (("2:4", 4, 2), ("1:4", 4, 1), ("4:6", 6, 4)):
        kept = np.asarray(Pattern.parse(text).kept(scores)).reshape(-1, group, 5)
        assert (kept.sum(1) == stay).all()
        worth = np.asarray(scores).reshape(-1, group, 5)
        assert (np.where(kept, worth, 9).min(1) >= np.where(kept, -1, worth).max(1)).all()
    for text, message in (
        ("4:2", "n must lie between 0 and m"), ("1.5", "between 0 and 1"), ("half", "neither a share such as 0.5 nor"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            Pattern.parse(text)
    with pytest.raises(ConfigError, match="'up' has 6 inputs, which do not divide into groups of 4"):
        Pattern.parse("2:4").check(6, "'up'")


def test_wanda_is_weight_times_norm_of_its_input_within_an_output():
    """The authors' code (prune_wanda): of W [out, in] the metric is |W| sqrt(mean x^2), sorted along each row."""
    x = np.random.default_rng(2).normal(size=(50, 12)) * np.arange(1, 13)
    metric = np.abs(KERNEL.T) * np.sqrt((x**2).mean(0))
    gone = np.zeros_like(metric, bool)
    np.put_along_axis(gone, np.argsort(metric, axis=-1, kind="stable")[:, :6], True, axis=-1)
    kept = Pattern(0.5).kept(wanda(jnp.asarray(KERNEL), jnp.asarray((x**2).sum(0))))
    np.testing.assert_array_equal(kept, ~gone.T)
    assert (~np.asarray(kept))[:4].sum() > (~np.asarray(kept))[8:].sum()


def test_magnitude_compares_the_whole_kernel():
    kept = np.asarray(Pattern(0.25).kept(magnitude(jnp.asarray(KERNEL)), across=True))
    assert (~kept).sum() == 15 and np.abs(KERNEL[~kept]).max() < np.abs(KERNEL[kept]).min()
