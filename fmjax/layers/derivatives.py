"""Derivatives of both modes for functions with a backward pass of their own.

`jax.custom_vjp` has no forward mode. Here the tangent is an operation of its own, of which the backward pass is the
transpose as it is written; where nothing else is said, it is computed as the transpose of the backward pass.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fmjax.parallel.logical import vary_alike


def with_backward(function, backward, tangent=None):
    """`function`, with `backward` as its derivative: under `jax.grad`, `jax.jvp`, `jax.vmap` and what is made of them.

    Args:
      function: (*arrays) -> tuple of floating arrays. Arguments may be None.
      backward: (arguments, what the function returned, cotangents of that) -> cotangents of the floating arguments, in
        their order; linear in the cotangents.
      tangent: (arguments, what the function returned, tangents of the floating arguments) -> tangents of what the
        function returned; may be None where JAX can transpose the operations of `backward`.
    """

    @jax.custom_jvp
    def run(*args):
        return function(*args)

    @run.defjvp
    def derivative(args, tangents):
        outs = run(*args)
        tangents = [t for x, t in zip(args, tangents) if x is not None and jnp.issubdtype(x.dtype, jnp.inexact)]
        saved, structure = jax.tree.flatten((args, outs))
        like = tuple(map(jax.typeof, outs))
        pull = lambda saved, *cotangents: tuple(backward(*structure.unflatten(saved), cotangents))
        push = lambda saved, *tangents: jax.linear_transpose(partial(pull, saved), *like)(tangents)
        if tangent is not None:
            push = lambda saved, *tangents: tuple(tangent(*structure.unflatten(saved), tangents))
        return outs, tuple(_tangent_p.bind(*saved, *tangents, pull=pull, push=push, num_saved=len(saved)))

    return lambda *args: run(*vary_alike(*args))


def _tangent(*arrays, pull, push, num_saved):
    return push(arrays[:num_saved], *arrays[num_saved:])


def _jvp(primals, tangents, **options):
    return jax.jvp(partial(_tangent, **options), tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _transpose(cotangents, *arrays, pull, push, num_saved):
    found = pull(arrays[:num_saved], *(ad.instantiate_zeros(x) for x in cotangents))
    wanted = map(ad.is_undefined_primal, arrays[num_saved:])
    return [None] * num_saved + [x if linear else None for x, linear in zip(found, wanted)]


def _batched(arrays, axes, *, pull, push, num_saved):
    (size,) = {x.shape[axis] for x, axis in zip(arrays, axes) if axis is not None}
    first = lambda x, axis: jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
    own = tuple(axes[:num_saved])

    def batched(function):
        return lambda saved, *linear: jax.vmap(function, (own, *(0 for _ in linear)))(saved, *linear)

    options = dict(pull=batched(pull), push=batched(push), num_saved=num_saved)
    outs = _tangent_p.bind(*arrays[:num_saved], *map(first, arrays[num_saved:], axes[num_saved:]), **options)
    return outs, [0] * len(outs)


_tangent_p = Primitive("tangent_by_transpose")
_tangent_p.multiple_results = True
_tangent_p.def_impl(_tangent)
_tangent_p.def_abstract_eval(lambda *arrays, **options: jax.make_jaxpr(partial(_tangent, **options))(*arrays).out_avals)
mlir.register_lowering(_tangent_p, mlir.lower_fun(_tangent, multiple_results=True))
ad.primitive_jvps[_tangent_p] = _jvp
ad.primitive_transposes[_tangent_p] = _transpose
batching.primitive_batchers[_tangent_p] = _batched
