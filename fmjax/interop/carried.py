"""Parameters of another model than the one that begins with them, where the module says what it can take: those of a
part of it, of images of another size, without its head."""

import logging
from collections.abc import Callable
from typing import Any

import jax

from fmjax.errors import ConfigError
from fmjax.interop.weights import flatten, unflatten

log = logging.getLogger("fmjax")


def source_of(module, other) -> tuple[str | None, Any]:
    """(field, module): the part of `other` that `module` begins with, and under which field its parameters lie; None
    and `other` itself where it takes no part. A module that takes parts has the method `part_of(other)`; of one that
    serves a part of itself (`SERVES`) any other kind of module takes that."""
    name = module.part_of(other) if hasattr(module, "part_of") else None
    if name is None and type(module) is not type(other):
        name = getattr(other, "SERVES", None)
    return name, other if name is None else getattr(other, name)


def place_of(module, other) -> str | None:
    """The field of `module` that begins with the parameters of `other`, while what is beside it is made anew; None
    where it has no such part. A module that has one has the method `place_of(other)`."""
    return module.place_of(other) if hasattr(module, "place_of") else None


def is_carried(module, field: str) -> bool:
    """Whether `module` takes parameters of one in which this field is another: it has the method `carried_over`, and
    the field is among its `CARRIES`."""
    return hasattr(module, "carried_over") and field in module.CARRIES


def carried_params(path: str, module, source, params, shapes, shardings, fresh: Callable[[], Any]):
    """The parameters that `module` begins with, of those that `source` has; what `carried_over` leaves out is made
    anew.

    Args:
      path: that they come from, for messages.
      shapes, shardings: trees of those of `module`.
      fresh: gives parameters of `module` as a run without others begins with, in their shards.

    Raises ConfigError for a parameter that the module has not got, or has in another shape.
    """
    return completed_params(path, module.carried_over(source, params), shapes, shardings, fresh)


def completed_params(path: str, taken, shapes, shardings, fresh: Callable[[], Any]):
    """Parameters as of `carried_params`: a tree of those that are there, and what it lacks made anew."""
    taken, ours, places = (flatten(tree) for tree in (taken, shapes, shardings))
    for name, leaf in taken.items():
        wanted = ours[name].shape if name in ours else None
        if leaf.shape != wanted:
            raise ConfigError(
                f"train.init_from = {path!r}: parameter {name!r} has shape {leaf.shape} there, {wanted} in this run"
            )
    anew = [name for name in ours if name not in taken]
    if anew:
        log.info("made anew, as %s has none that would do: %s", path, ", ".join(anew))
        taken |= {name: leaf for name, leaf in flatten(fresh()).items() if name in anew}
    return unflatten({name: jax.device_put(taken[name], places[name]) for name in ours})
