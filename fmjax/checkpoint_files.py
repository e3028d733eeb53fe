"""The files of checkpoints: `checkpoints/STEP/`, which are complete, their parameters read and written."""

import contextlib
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding

from fmjax.errors import CheckpointError, InputError, first_line
from fmjax.parallel.sharding import path_name
from fmjax.power_average import mixture
from fmjax.small_files import write_whole

MANIFEST = "files.json"
"""Lists the size of every file of a checkpoint."""


def _write_small_arrays_whole() -> None:
    """Orbax has each device that holds an array as others do write a part of it, cut out by a program for every shape
    and device: to compile these takes longer than to write small arrays whole."""
    # With a store, as Orbax's own handler: of what is saved each array's metadata are written, found to be the same in
    # every process, and say on reading which arrays are keys of random numbers.
    store = ocp.v1.options.ArrayOptions.Saving().array_metadata_store
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20, array_metadata_store=store)
    told = logging.getLogger("absl")
    level = told.level
    told.setLevel(logging.ERROR)  # it warns of a handler in another's place
    try:
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    finally:
        told.setLevel(level)


_write_small_arrays_whole()


def last_good(workdir: pathlib.Path) -> str:
    """For messages: which checkpoint of a run can be resumed from."""
    steps = complete_steps(workdir / "checkpoints")
    return f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint was saved yet"


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint was completed in `workdir`, damaged or not: a run goes on there, or says why it cannot."""
    return any(folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*"))


def _files(folder: pathlib.Path) -> dict[str, int]:
    return {
        str(f.relative_to(folder)): f.stat().st_size
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != MANIFEST
    }


def write_manifest(folder: pathlib.Path) -> None:
    """Lists the files of a complete checkpoint and their sizes, for `verify`."""
    write_whole(folder / MANIFEST, json.dumps(_files(folder), indent=0))


def verify(folder: pathlib.Path) -> None:
    """Raises CheckpointError naming the first file of a checkpoint that is missing or not as long as when written.

    A checkpoint without `files.json` (the run was killed just after it was complete) passes; reading it still checks
    what the format itself checks.
    """
    try:
        expected = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise CheckpointError(f"{folder / MANIFEST} is torn ({error})") from None
    present = _files(folder)
    for name, size in expected.items():
        if name not in present:
            raise CheckpointError(f"{folder / name} is missing")
        if present[name] != size:
            raise CheckpointError(f"{folder / name} has {present[name]} bytes instead of {size}")


def complete_steps(folder: pathlib.Path) -> list[int]:
    """Steps, ascending, of the checkpoints in `folder` that were completed and are undamaged as far as sizes tell."""
    steps = []
    for child in folder.glob("*"):
        if child.name.isdigit() and (child / "_CHECKPOINT_METADATA").is_file():
            with contextlib.suppress(CheckpointError):
                verify(child)
                steps.append(int(child.name))
    return sorted(steps)


def load_params(
    workdir: str | pathlib.Path, step: int | None = None, which: str = "auto", shardings=None, stored=None
) -> tuple[Any, int]:
    """Parameters of a saved run and their step.

    Args:
      workdir: a run's folder, or one that `Model.save` wrote.
      step: which checkpoint; None = the newest complete one.
      which: "params", "ema" (the moving average), or "auto": the average where the run kept one.
      shardings: of the parameters; None is whole on the first device.
      stored: see `read_item`; of a run that kept no average of some parameters alone.

    Raises CheckpointError when there is no such checkpoint or it is damaged.
    """
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    steps = complete_steps(folder)
    if not steps:
        raise CheckpointError(f"{str(workdir)!r} has no complete checkpoint under checkpoints/")
    if step is not None and step not in steps:
        raise CheckpointError(f"{str(workdir)!r} has no checkpoint of step {step}; there are: {steps}")
    step = steps[-1] if step is None else step
    has_ema = (folder / str(step) / "ema").is_dir()
    if which == "ema" and not has_ema:
        raise CheckpointError(f"the run in {str(workdir)!r} kept no moving average (train.ema_decay was 0)")
    average = which == "ema" or (which == "auto" and has_ema)
    found = read_item(folder / str(step) / ("ema" if average else "params"), shardings, stored)
    return (_filled(found, folder / str(step), shardings) if average else found), step


def _filled(average, folder: pathlib.Path, shardings):
    """An average with what did not train, of which none was kept."""
    is_none = lambda x: x is None
    if not any(map(is_none, jax.tree.leaves(average, is_leaf=is_none))):
        return average
    rest = read_item(folder / "params", shardings)
    return jax.tree.map(lambda a, b: b if a is None else a, average, rest, is_leaf=is_none)


def load_average(
    workdir: str | pathlib.Path, widths: Sequence[float], sigma_rel: float, step: int | None = None, shardings=None
) -> tuple[Any, int]:
    """Parameters averaged by a power function of any width, made of the two averages in each checkpoint that was kept
    (`fmjax.power_average`), and their step.

    Args:
      widths: `train.ema_sigma_rel` of the run.
      sigma_rel: the width wanted.
      step, shardings: as for `load_params`.

    Raises CheckpointError as `load_params`, and for a run without the averages; InputError for a width that cannot be.
    """
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    steps = [one for one in complete_steps(folder) if one and (folder / str(one) / "wide_ema").is_dir()]
    if not steps or len(widths) != 2:
        raise CheckpointError(
            f"{str(workdir)!r} has no checkpoint with averages by power functions (train.ema_sigma_rel), of which one "
            "of another width could be made"
        )
    step = steps[-1] if step is None else step
    if step not in steps:
        raise CheckpointError(f"{str(workdir)!r} has no checkpoint of step {step} with averages; there are: {steps}")
    kept = [(one, item, width) for one in steps if one <= step for item, width in zip(("ema", "wide_ema"), widths)]
    try:
        shares = mixture([one for one, _, _ in kept], [width for _, _, width in kept], step, sigma_rel)
    except ValueError as error:
        raise InputError(str(error)) from None
    total = None
    for (one, item, _), share in zip(kept, shares):
        part = jax.tree.map(lambda x: share * x, read_item(folder / str(one) / item, shardings))
        total = part if total is None else jax.tree.map(jax.numpy.add, total, part)
    return _filled(total, folder / str(step), shardings), step


def load_carry(workdir: str | pathlib.Path, step: int, shardings: Callable[[], Any] | None = None) -> Any:
    """What the objective of a run carried at a checkpoint; None where it carried nothing.

    Args:
      shardings: makes those of the carry, a tree like it; None is nested dicts, whole on the first device.

    Raises CheckpointError when it cannot be read.
    """
    path = pathlib.Path(workdir).absolute() / "checkpoints" / str(step) / "carry"
    if not path.is_dir():
        return None
    return read_item(path, None if shardings is None else shardings())


def read_item(
    path: pathlib.Path, shardings=None, stored: Mapping[str, Callable[[jax.Array], Any]] | None = None
) -> Any:
    """The arrays of one item of a checkpoint (`checkpoints/STEP/params`, say).

    Args:
      shardings: a tree like the one that was saved, which is returned; None is nested dicts, whole on the first device.
      stored: by path, what makes of an array what is kept of it, before the next of these is read
        (`fmjax.adapt.base.Weights`); with `shardings`.

    Raises CheckpointError when it cannot be read, or is not like `shardings`.
    """
    device = SingleDeviceSharding(jax.local_devices()[0])
    try:
        # The handler's own: a Checkpointer looks for the metadata of a whole checkpoint, and misses them in an item.
        saved = dict(ocp.StandardCheckpointHandler().metadata(path))
        with ocp.StandardCheckpointer() as reader:
            if shardings is None:
                return reader.restore(path, jax.tree.map(lambda m: _shape(m, device), saved))
            places, structure = jax.tree_util.tree_flatten_with_path(shardings)
            places = {path_name(name): place for name, place in places}
            _check_names(path, saved, places)
            shapes = jax.tree_util.tree_map_with_path(lambda name, m: _shape(m, places[path_name(name)]), saved)
            if stored:
                found = _read_one_by_one(path, shapes, stored)
            else:
                found = jax.tree_util.tree_flatten_with_path(reader.restore(path, shapes))[0]
                found = {path_name(name): array for name, array in found}
            return structure.unflatten([found.get(name) for name in places])
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {first_line(error)}") from error


def _read_one_by_one(path: pathlib.Path, shapes, stored) -> dict[str, Any]:
    """The arrays of an item by path, those of `stored` as these functions make them, one after another."""
    flat = [(path_name(name), shape) for name, shape in jax.tree_util.tree_flatten_with_path(shapes)[0]]
    parts = [dict(one for one in flat if one[0] not in stored), *({one[0]: one[1]} for one in flat if one[0] in stored)]
    found = {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        for part in parts:
            wanted = unflatten_dict(part, sep="/")
            kinds = ocp.checkpoint_utils.construct_restore_args(wanted)
            read = reader.restore(path, ocp.args.PyTreeRestore(wanted, restore_args=kinds, partial_restore=True))
            for name, array in flatten_dict(read, sep="/").items():
                found[name] = jax.block_until_ready(stored[name](array)) if name in stored else array
    return found


def _shape(metadata, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(metadata.shape, metadata.dtype, sharding=sharding)


def _check_names(path: pathlib.Path, saved, places) -> None:
    """Raises CheckpointError naming the first array that is saved and not expected, or the reverse."""
    leaves = jax.tree_util.tree_flatten_with_path(saved, is_leaf=lambda x: x is None)[0]
    saved = {path_name(name) for name, _ in leaves}
    for name in sorted(saved ^ places.keys()):
        there = "holds" if name in saved else "lacks"
        raise CheckpointError(
            f"{str(path)!r} {there} {name!r}, which its config.json does not say; is it of another run?"
        )


def save_params(directory: str | pathlib.Path, params, step: int = 0, carry=None) -> None:
    """Writes `params`, and `carry` where there is one, as the only checkpoint of `directory`, so that `load_params` and
    `load_carry` find them."""
    folder = pathlib.Path(directory).absolute() / "checkpoints"
    if folder.exists():
        raise CheckpointError(f"{str(folder)!r} exists already; save to a new directory")
    items = {"params": params} | ({} if carry is None else {"carry": carry})
    with ocp.CheckpointManager(folder, item_names=tuple(items)) as manager:
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        manager.save(step, args=ocp.args.Composite(**saved))
        manager.wait_until_finished()
    write_manifest(folder / str(step))
