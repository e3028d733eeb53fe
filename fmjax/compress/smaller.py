"""Methods that take whole parts out: attention heads, layers; and the module and the config of what is left."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from fmjax.assemble import param_spec
from fmjax.compress.base import named, noted
from fmjax.compress.calibrate import by_block, part_at, restacked, unstacked, with_part
from fmjax.compress.kernels import batches_of, progress_log
from fmjax.compress.parts import (
    change_of_direction,
    head_importance,
    same_kinds,
    without_heads,
    zeroed_heads,
)
from fmjax.compress.placing import as_the_model
from fmjax.compress.stacks import entries, find_stacks, next_entry
from fmjax.errors import ConfigError, InputError
from fmjax.inference.model import Model
from fmjax.layers.checks import check_positive
from fmjax.layers.quantized import QTensor
from fmjax.layers.weights import is_weight
from fmjax.parallel.sharding import path_name
from fmjax.registry import nearest


@dataclasses.dataclass(frozen=True)
class Heads:
    """The attention heads that add least to the residual stream over calibration are taken out, as many of each layer;
    heads of queries that share keys and values go together.

    Attributes:
      share: of the heads, what is taken out.
      remove: whether they are gone, so that the model has fewer; else their part of attention's output is zero.
      rows_at_once: rows of calibration that go through the model at a time.
    """

    needs_calibration: ClassVar[bool] = True
    name: ClassVar[str] = "heads"

    share: float = 0.25
    remove: bool = True
    rows_at_once: int = 8

    def __post_init__(self):
        check_positive(rows_at_once=self.rows_at_once)
        if not 0.0 < self.share < 1.0:
            raise ConfigError(f"share = {self.share} must lie between 0 and 1, such as 0.25")

    def compress(
        self, model: Model, calibration: Mapping[str, np.ndarray] | None = None, progress: bool = False
    ) -> Model:
        """See `fmjax.compress.base.Method`, but for the module, which has fewer heads where they are removed.

        Raises InputError for a share that is no head or all of them, and, where heads are removed, a module that cannot
        have fewer.
        """
        check_whole(model)
        batches, gone, fields = batches_of(model, calibration, self.rows_at_once), {}, {}
        with model.inference():
            stacks = find_stacks(model.module, model.variables, batches[0])
            for path, config in stacks.items():
                left = self._left(model, path, config)
                fields.setdefault(owner_path(model.module, path), {}).update(left if self.remove else {})

            def change(path, layer, block, sums):
                config = stacks[path]
                kernel, gram = block["attention"]["out"]["kernel"], sums["attention/out"]["gram"]
                worth = head_importance(kernel, gram, config.num_kv_heads)
                gone[path, layer] = tuple(np.argsort(worth, stable=True)[: self._number(path, config)].tolist())
                return zeroed_heads(block, config, gone[path, layer])

            params = by_block(
                model.module, model.variables, batches, change, ("gram",), done=progress_log(),
                placement=model.placement,
            )  # fmt: skip
            told = {"method": self.name, **dataclasses.asdict(self), "heads": _listed(gone)}
            if not self.remove:
                return with_params(model, params, told)
            params = model.params
            for path, config in stacks.items():
                stack = part_at(model.params, path)
                blocks = unstacked(stack, config.num_layers)
                left = [without_heads(block, config, gone[path, i]) for i, block in enumerate(blocks)]
                params = with_part(params, path, restacked(stack, left))
        return with_model(model, params, fields, told, "give remove=False, which sets their outputs to zero")

    def _number(self, path, config) -> int:
        """How many groups of heads are taken out of each layer."""
        number, groups = round(self.share * config.num_kv_heads), config.num_kv_heads
        if not 0 < number < groups:
            together = config.num_heads // groups
            what = f"{groups} heads" if together == 1 else f"{groups} groups of {together} heads, which go together"
            raise InputError(f"share = {self.share} of {path!r} is {number} of {what}; take one between")
        return number

    def _left(self, model, path, config) -> dict[str, int]:
        """The fields of the module that has the stack, with fewer heads."""
        left = config.num_kv_heads - self._number(path, config)
        heads = {"num_heads": left * (config.num_heads // config.num_kv_heads), "head_dim": config.head_dim}
        if config.cross_attention and self.remove:
            raise InputError(f"{path!r} has cross attention, with as many heads; give remove=False")
        owner = part_of(model.module, owner_path(model.module, path))
        if getattr(owner, "num_kv_heads", None) is not None:
            heads["num_kv_heads"] = left
        return heads


@dataclasses.dataclass(frozen=True)
class Layers:
    """Whole layers are taken out of a stack: those named, or those after which the residual stream points most nearly
    where it did before (block influence: Men et al. 2024, https://arxiv.org/abs/2403.03853).

    Attributes:
      number: how many, where none are named.
      drop: which, counted from 0.
      stack: the path of the stack, such as "vision/stack", where a model has several.
      rows_at_once: rows of calibration that go through the model at a time.
    """

    needs_calibration: ClassVar[bool] = True
    name: ClassVar[str] = "layers"

    number: int = 1
    drop: tuple[int, ...] = ()
    stack: str = ""
    rows_at_once: int = 8

    def __post_init__(self):
        check_positive(number=self.number, rows_at_once=self.rows_at_once)

    def compress(
        self, model: Model, calibration: Mapping[str, np.ndarray] | None = None, progress: bool = False
    ) -> Model:
        """See `fmjax.compress.base.Method`, but for the module, which has fewer layers.

        Raises InputError for a stack or a layer that is not there, where no layer is left, and where the layers that
        are left would be of another kind (a window, a rotary embedding) at their new places.
        """
        check_whole(model)
        batches = batches_of(model, calibration, self.rows_at_once)
        with model.inference():
            stacks = find_stacks(model.module, model.variables, batches[0])
            path = self._stack(stacks, model)
            config, influence = stacks[path], None
            if self.drop:
                gone = set(self.drop)
                if wrong := [i for i in self.drop if not 0 <= i < config.num_layers]:
                    raise InputError(f"drop: {path!r} has the layers 0 to {config.num_layers - 1}, and no {wrong[0]}")
            else:
                influence = block_influence(model, path, config, batches)
                gone = set(np.argsort(influence, kind="stable")[: self.number].tolist())
            kept = [i for i in range(config.num_layers) if i not in gone]
            if not kept:
                raise InputError(f"{path!r} has {config.num_layers} layers, all of which would go; take fewer")
            if not same_kinds(config, kept):
                raise InputError(
                    f"without the layers {sorted(gone)} of {path!r} others would get another window or rotary "
                    f"embedding: the pattern repeats every {config.period} layers; drop whole periods by name (drop)"
                )
            part = part_at(model.params, path)
            blocks = unstacked(part, config.num_layers)
            params = with_part(model.params, path, restacked(part, [blocks[i] for i in kept]))
        told = {"method": self.name, **dataclasses.asdict(self), "drop": sorted(gone)}
        told |= {} if influence is None else {"influence": [round(float(x), 6) for x in influence]}
        owner = owner_path(model.module, path)
        fields = {"num_layers": len(kept)}
        if hasattr(part_of(model.module, owner), "num_decoder_layers"):
            if path.rpartition("/")[2] == "decoder":
                fields = {"num_decoder_layers": len(kept)}
            else:  # which else has as many layers as the encoder
                decoder = next(other for at, other in stacks.items() if at.rpartition("/")[2] == "decoder")
                fields["num_decoder_layers"] = decoder.num_layers
        return with_model(model, params, {owner: fields}, told, "take another model")

    def _stack(self, stacks, model) -> str:
        if not stacks:
            raise InputError(f"{model} has no Transformer stack to take layers out of")
        if self.stack:
            if self.stack not in stacks:
                known = ", ".join(stacks)
                raise InputError(f"{model} has no stack {self.stack!r}{nearest(self.stack, stacks)} Known: {known}")
            return self.stack
        if len(stacks) > 1:
            raise InputError(f"{model} has the stacks {', '.join(stacks)}; say which with stack")
        return next(iter(stacks))


def block_influence(model: Model, path: str, config, batches) -> np.ndarray:
    """float64 [layers]: 1 less the mean cosine between the residual stream before and after each block."""
    entered = [entry for batch in batches for entry in entries(model.module, model.variables, dict(batch), path)]
    found = []
    for layer, block in enumerate(unstacked(part_at(model.params, path), config.num_layers)):
        left = [next_entry(config, layer, block, entry) for entry in entered]
        sums = [_direction(a.x, b.x, a.counted) for a, b in zip(entered, left)]
        found.append(float(sum(float(s) for s, _ in sums)) / max(1, sum(int(n) for _, n in sums)))
        entered = left
    return np.asarray(found)


_direction = jax.jit(change_of_direction)


def check_whole(model: Model) -> None:
    """Raises InputError for a model with kernels of few bits, or with adapters beside them."""
    for name, leaf in named(model.params).items():
        if is_weight(leaf):
            what = f"is of {leaf.format} already" if isinstance(leaf, QTensor) else "has an adapter beside it"
            raise InputError(f"{name!r} of {model} {what}; take the model that it was, or save it with that merged")


def _listed(gone: Mapping[tuple[str, int], tuple[int, ...]]) -> dict[str, list[list[int]]]:
    """By stack, for each layer the groups that are gone."""
    found: dict[str, list] = {}
    for (path, _), groups in sorted(gone.items()):
        found.setdefault(path, []).append(list(groups))
    return found


def owner_path(module: nn.Module, stack: str) -> str:
    """The path of the module among a module's fields that has the stack at "vision/stack": "vision"."""
    names = stack.split("/")[:-1]
    while names and not isinstance(part_of(module, "/".join(names)), nn.Module):
        names.pop()
    return "/".join(names)


def part_of(module: nn.Module, path: str) -> Any:
    """The module that is a field of a module's fields, by path; None where there is none."""
    for name in filter(None, path.split("/")):
        module = getattr(module, name, None)
    return module


def with_fields(module: nn.Module, path: str, fields: Mapping[str, Any]) -> nn.Module:
    """The module with other fields, of itself or of a module among its fields."""
    if not path:
        return module.clone(**fields)
    name, _, rest = path.partition("/")
    return module.clone(**{name: with_fields(getattr(module, name), rest, fields)})


def with_params(model: Model, params: Any, told: Mapping[str, Any]) -> Model:
    """The model with other parameters; told: what was done, for its config.json."""
    return dataclasses.replace(model, params=params, config=noted(model, told), kept={})


def with_model(
    model: Model, params: Any, fields: Mapping[str, Mapping[str, Any]], told: Mapping[str, Any], remedy: str
) -> Model:
    """The model with parameters of another structure, and the fields that say so, by path of the module that has them.

    Raises InputError, with a remedy, where a module has no such field, or is not of these parameters with it.
    """
    module, section = model.module, model.config.get("model", {})
    for path, own in fields.items():
        owner = part_of(model.module, path)
        if lost := [name for name in own if not hasattr(owner, name)]:
            raise InputError(f"{type(owner).__name__} has no field {lost[0]!r}, and cannot be changed so; {remedy}")
        module = with_fields(module, path, own)
        section = with_part(section, path, {**part_at(section, path), **own})
    expected = param_spec(module, module.example())[0]
    shapes = lambda tree: {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    if shapes(expected) != shapes(params):
        raise InputError(
            f"{type(module).__name__} with {dict(fields)} has parameters of other shapes than are left: what goes uses "
            f"them elsewhere too; {remedy}"
        )
    made = with_params(model, as_the_model(module, params, model.placement), told)
    return dataclasses.replace(made, module=module, config={**made.config, "model": section})
