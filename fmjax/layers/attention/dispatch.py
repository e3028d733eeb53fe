"""Scaled dot-product attention: one function, several backends.

`attention` states what is computed; `reference` computes it literally. Every other backend either computes the same
(the tests compare outputs and gradients) or raises.
"""

import functools
import importlib
import logging

import jax

from fmjax.errors import ConfigError
from fmjax.layers.attention import mesh
from fmjax.layers.attention.forked import forked_attention
from fmjax.layers.attention.reference import Forked, Ordered, reference
from fmjax.layers.checks import check_choice
from fmjax.parallel.platform import target_platform

log = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "cpu", "cudnn", "splash")
_MODULES = {
    "cpu": "fmjax.layers.attention.cpu",
    "cudnn": "fmjax.layers.attention.cudnn",
    "splash": "fmjax.layers.attention.splash",
}
# Backends that attend forked segments.
FORKING = ("auto", "reference", "cpu")


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids=None,
    positions=None,
    causal: bool = True,
    window: int | None = None,
    mask=None,
    scale: float | None = None,
    backend: str = "auto",
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale * q k^T + mask) v for every head (Vaswani et al. 2017, eq. 1).

    Query t may attend to key s where all of these hold:
      - their segment ids are equal;
      - causal: position s <= position t;
      - window: the positions differ by less than `window`, so that a causal window of w sees w keys, itself included;
      - mask: `mask.allowed(t, s)` of the positions.
    A query that may attend nothing gets a finite value without meaning.

    Args:
      q: [B, T, H, D].
      k, v: [B, S, K, D], where K divides H: query head h reads key-value head h // (H // K).
      segment_ids: int32 [B, T] for both sides when S == T, or a pair ([B, T], [B, S]); None is one segment. Rows are in
        order of time within a segment; or `Ordered`, which says their order, or `Forked`.
      positions: None to use the index in the row (right for packed rows too, since only differences within a segment
        count), int32 [B, T], or a pair ([B, T], [B, S]) as in cached decoding.
      causal, window: see above.
      mask: None, or a rule of the positions such as `fmjax.layers.attention.image_masks.ImageMask`: a hashable object
        whose `allowed(query, key)` takes NumPy's and JAX's integers. Not of rows in an order of their own.
      scale: None is 1 / sqrt(D).
      backend: one of BACKENDS. `auto` takes, by the platform the program is for (`target_platform`), `cpu`, `splash` on
        TPU or `cudnn` on GPU where it can do what is asked, else `reference`; each choice is logged once. On a mesh a
        kernel computes each device's share, also of a length that is split (`fmjax.layers.attention.mesh`); `reference`
        is left to XLA.
      dropout_rate, dropout_key: dropout of the attention probabilities.

    Derivatives: `reference` and `cpu` have those of both modes (`jax.grad`, `jax.jvp`), and of any order but for the
    gradient of a derivative on a split length, or of `cpu` from `LONG` tokens on. The kernels of `cudnn` and `splash`
    have a backward pass alone: `jax.jvp` through them raises a TypeError.

    Returns: [B, T, H, D] in q's dtype. Logits and softmax are float32.
    Raises ConfigError when shapes do not fit or a named backend cannot do what is asked.
    """
    check_choice("attention backend", backend, BACKENDS)
    _check_shapes(q, k, v)
    if isinstance(segment_ids, Forked):
        _check_forked(backend, positions=positions, causal=causal, dropout_rate=dropout_rate, mask=mask)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return _attend_forked(q, k, v, segment_ids, window=window, scale=scale, backend=backend)
    if isinstance(segment_ids, Ordered):
        if mask is not None:
            raise ConfigError(f"attention with {mask} goes by the index in the row; got rows in an order of their own.")
        if positions is not None:
            raise ConfigError("attention takes the order of tokens from `Ordered` or from positions, not from both.")
        segment_ids, positions = segment_ids
    t, s = q.shape[1], k.shape[1]
    segment_ids = _pair("segment_ids", segment_ids, t, s)
    positions = _pair("positions", positions, t, s)
    if window is not None and window < 1:
        raise ConfigError(f"attention window={window}: expected at least 1, or None for no window.")
    if (causal or window is not None or mask is not None) and positions is None and t != s:
        raise ConfigError(
            f"attention of {t} queries over {s} keys with a causal mask, a window or another mask needs positions for "
            "both."
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    asked = dict(segment_ids=segment_ids, positions=positions, causal=causal, window=window, mask=mask)
    asked["dropout_rate"] = dropout_rate
    if backend == "auto":
        backend = _choose(q, k, **asked)
    elif backend != "reference":
        reason = importlib.import_module(_MODULES[backend]).unsupported(q, k, **asked)
        if reason:
            raise ConfigError(f"attention backend {backend!r} {reason}. Use backend 'reference' or 'auto'.")
    if backend == "reference":
        return reference(q, k, v, scale=scale, dropout_key=dropout_key, **asked)
    del asked["dropout_rate"]
    return mesh.run(importlib.import_module(_MODULES[backend]), q, k, v, scale=scale, **asked)


def _check_forked(backend, *, positions, causal, dropout_rate, mask) -> None:
    if backend not in FORKING:
        raise ConfigError(
            f"attention backend {backend!r} has no masks of segments that fork. Use one of {', '.join(FORKING)}."
        )
    if positions is not None or not causal or dropout_rate > 0.0 or mask is not None:
        raise ConfigError(
            "attention of segments that fork is causal, has no dropout and no mask besides, and takes its positions "
            f"from `Forked`; got causal={causal}, dropout_rate={dropout_rate}, mask={mask}, positions "
            f"{'given' if positions is not None else 'None'}."
        )


def _attend_forked(q, k, v, forked: Forked, *, window, scale, backend):
    if backend == "reference":
        ids, branches, positions = ((x, x) for x in forked)
        masks = dict(segment_ids=ids, branches=branches, positions=positions, causal=True, window=window)
        return reference(q, k, v, scale=scale, **masks)
    return forked_attention(q, k, v, forked, window=window, scale=scale)


def _choose(q, k, **asked) -> str:
    platform = target_platform()
    preferred = {"cpu": "cpu", "gpu": "cudnn", "tpu": "splash"}.get(platform, "reference")
    if preferred == "reference":
        reason = f"no kernel for platform {platform!r}"
    else:
        reason = importlib.import_module(_MODULES[preferred]).unsupported(q, k, **asked)
    backend = "reference" if reason else preferred
    _log_choice(platform, backend, f" because {preferred!r} {reason}" if reason else "")
    return backend


@functools.lru_cache(maxsize=None)
def _log_choice(platform: str, backend: str, why: str) -> None:
    log.info("attention backend on %s: %s%s", platform, backend, why)


def _check_shapes(q, k, v) -> None:
    fits = q.ndim == k.ndim == v.ndim == 4 and k.shape == v.shape
    fits = fits and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3] and q.shape[2] % k.shape[2] == 0
    if not fits:
        raise ConfigError(
            "attention takes q [B, T, H, D] and k, v [B, S, K, D] with H a multiple of K; got "
            f"{q.shape}, {k.shape}, {v.shape}."
        )


def _pair(what: str, value, t: int, s: int):
    """(query side, key side) or None."""
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or pair[0].shape[-1] != t or pair[1].shape[-1] != s:
        raise ConfigError(f"attention {what}: expected shapes [B, {t}] and [B, {s}], got {[p.shape for p in pair]}.")
    return pair
