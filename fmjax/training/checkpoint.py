"""Checkpoints: `WORKDIR/checkpoints/STEP/`, written by Orbax in the background, verified before they are trusted.

A checkpoint has the items `params`, `train` (step, skipped updates, optimizer state), `ema` where the run keeps a
moving average, and `meta` (JSON: what data the run saw). Beside Orbax's own files lies `files.json`, the size of
every file, so that a truncated or missing file is noticed even where the format would not notice.
"""

import contextlib
import errno
import json
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from fmjax.errors import CheckpointError, RunError
from fmjax.parallel import watch
from fmjax.training.disk import disk_full, first_line
from fmjax.training.state import TrainState

log = logging.getLogger("fmjax")

MANIFEST = "files.json"


class SaveError(RunError):
    """The disk is full: a checkpoint or another file of the run was not written. What was saved before stays."""


class Checkpointer:
    """Saves and restores the states of one run.

    Args:
      workdir: the run's folder.
      keep_last: the newest checkpoints that are kept.
      keep_every: checkpoints at multiples of this step are kept for ever; 0 = none.
    """

    def __init__(self, workdir: pathlib.Path, keep_last: int = 2, keep_every: int = 0):
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last, keep_period=keep_every or None, cleanup_tmp_directories=True
            ),
            item_names=("params", "train", "ema", "meta"),
        )
        self._started: int | None = None

    def save(self, state: TrainState, meta: dict) -> None:
        """Starts saving `state` as the checkpoint of its step; returns when the arrays are copied, not yet written.

        Raises SaveError when the disk is too full for this save or the one before it; other failures as they come.
        """
        self.finish()
        step = int(state.step)
        items = {
            "params": ocp.args.StandardSave(state.params),
            "train": ocp.args.StandardSave(_train_item(state)),
            "meta": ocp.args.JsonSave(meta),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        self._started = step
        watch.at(f"the checkpoint of step {step}")
        with self._explained():
            self.manager.save(step, args=ocp.args.Composite(**items), force=True)

    def check(self) -> None:
        """Completes a save whose writing has ended. Waits for nothing; raises as `save` does.

        A save that still runs is not asked for its errors: Orbax tells each once, and its own thread, which deletes the
        oldest checkpoint when the new one is whole, must be the one to hear.
        """
        if self._started is not None and not self.manager.is_saving_in_progress():
            self._complete()

    def finish(self) -> None:
        """Waits until the save under way is complete on disk; all processes call it. Raises SaveError when it fails."""
        watch.at("the writing of what was saved", limited=False)
        self._complete()

    def _complete(self) -> None:
        with self._explained():
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
            if self._started is not None and jax.process_index() == 0:
                _write_manifest(self.folder / str(self._started))
        self._started = None

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except Exception as error:
            failed, self._started = self._started, None
            if not disk_full(error):
                raise
            raise SaveError(
                f"checkpoint of step {failed} could not be written to {str(self.folder)!r} "
                f"({type(error).__name__}: {first_line(error)}); {last_good(self.folder.parent)}. "
                "Is the disk full? Make room and run the same command again to resume."
            ) from error

    def restore_latest(self, shapes: TrainState) -> tuple[TrainState, dict] | None:
        """The newest complete checkpoint as (state, meta), or None when the run has none.

        A damaged checkpoint is reported, moved to `WORKDIR/damaged_checkpoints/`, and the one before it is used.

        Args:
          shapes: a TrainState of `jax.ShapeDtypeStruct` with the shardings to restore to, whatever they were before.

        Raises CheckpointError when there are checkpoints and none is usable; exhausted memory and failures to reach the
        files say nothing about a checkpoint and are raised as they are.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        damaged = []
        for step in steps:
            try:
                verify(self.folder / str(step))
                restored = self._restore(step, shapes)
            except Exception as error:
                if not _is_damage(error):
                    raise
                damaged.append((step, error))
                log.error("CHECKPOINT OF STEP %d IS DAMAGED and is not used: %s", step, first_line(error, 500))
                continue
            self._set_aside([s for s, _ in damaged])
            return restored
        if damaged:
            listed = "; ".join(f"step {s}: {first_line(e, 200)}" for s, e in damaged)
            raise CheckpointError(
                f"no checkpoint in {str(self.folder)!r} can be read ({listed}). Nothing was changed; "
                "restore a copy, or start in a new --workdir"
            )
        return None

    def _restore(self, step: int, shapes: TrainState) -> tuple[TrainState, dict]:
        items = {
            "params": ocp.args.StandardRestore(shapes.params),
            "train": ocp.args.StandardRestore(_train_item(shapes)),
            "meta": ocp.args.JsonRestore(),
        }
        if shapes.ema is not None:
            items["ema"] = ocp.args.StandardRestore(shapes.ema)
        watch.at(f"the restoring of step {step}", limited=False)
        found = self.manager.restore(step, args=ocp.args.Composite(**items))
        train = found["train"]
        ema = found["ema"] if shapes.ema is not None else None
        state = TrainState(train["step"], train["skipped"], found["params"], train["opt_state"], ema)
        return state, found["meta"]

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                target = self.folder.parent / "damaged_checkpoints" / str(step)
                target.parent.mkdir(exist_ok=True)
                number = 1
                while target.exists():
                    number += 1
                    target = target.with_name(f"{step}.{number}")
                (self.folder / str(step)).rename(target)
                log.error("moved the damaged checkpoint of step %d to %s", step, target)
        self.manager.reload()


def last_good(workdir: pathlib.Path) -> str:
    """For messages: which checkpoint of a run can be resumed from."""
    steps = complete_steps(workdir / "checkpoints")
    return f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint was saved yet"


def _is_damage(error: Exception) -> bool:
    """Whether a failure to read a checkpoint lies with its files, so that trying again would not help."""
    if isinstance(error, CheckpointError):
        return True
    if isinstance(error, MemoryError):
        return False
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return False
    elsewhere = ("RESOURCE_EXHAUSTED", "Out of memory", "Input/output error", "Permission denied")
    return not any(word in str(error) for word in elsewhere)


def _train_item(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "skipped": state.skipped, "opt_state": state.opt_state}


def _files(folder: pathlib.Path) -> dict[str, int]:
    return {
        str(f.relative_to(folder)): f.stat().st_size
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name not in (MANIFEST, MANIFEST + ".tmp")
    }


def _write_manifest(folder: pathlib.Path) -> None:
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(_files(folder), indent=0))
    temporary.replace(folder / MANIFEST)


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
    workdir: str | pathlib.Path, step: int | None = None, which: str = "auto", shardings=None
) -> tuple[Any, int]:
    """Parameters of a saved run and their step.

    Args:
      workdir: a run's folder, or one that `Model.save` wrote.
      step: which checkpoint; None = the newest complete one.
      which: "params", "ema" (the moving average), or "auto": the average where the run kept one.
      shardings: of the parameters; None is whole on the first device.

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
    path = folder / str(step) / ("ema" if which == "ema" or (which == "auto" and has_ema) else "params")
    return read_item(path, shardings), step


def read_item(path: pathlib.Path, shardings=None) -> Any:
    """The arrays of one item of a checkpoint (`checkpoints/STEP/params`, say), as `shardings` says or on one device.

    Raises CheckpointError when it cannot be read.
    """
    device = SingleDeviceSharding(jax.local_devices()[0])
    try:
        with ocp.StandardCheckpointer() as reader:
            found = dict(reader.metadata(path).item_metadata)
            if shardings is None:
                shardings = jax.tree.map(lambda _: device, found)
            shapes = jax.tree.map(lambda m, s: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=s), found, shardings)
            return reader.restore(path, shapes)
    except Exception as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {first_line(error)}") from error


def save_params(directory: str | pathlib.Path, params, step: int = 0) -> None:
    """Writes `params` alone as the only checkpoint of `directory`, so that `load_params` finds them."""
    folder = pathlib.Path(directory).absolute() / "checkpoints"
    if folder.exists():
        raise CheckpointError(f"{str(folder)!r} exists already; save to a new directory")
    with ocp.CheckpointManager(folder, item_names=("params",)) as manager:
        manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
        manager.wait_until_finished()
    _write_manifest(folder / str(step))
