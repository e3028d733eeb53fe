"""Checkpoints: `WORKDIR/checkpoints/STEP/`, written by Orbax in the background, verified before they are trusted.

A checkpoint has the items `params`, `train` (step, skipped updates, optimizer state), `ema` where the run keeps a
moving average and `wide_ema` where it keeps two, `carry` where its objective has one, and `meta` (JSON: what data the
run saw). Beside Orbax's own files lies `files.json`, the size of every file, so that a truncated or missing file is
noticed even where the format would not notice.
"""

import contextlib
import errno
import json
import logging
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import orbax.checkpoint as ocp

from fmjax.checkpoint_files import last_good, verify, write_manifest
from fmjax.errors import CheckpointError, RunError, first_line
from fmjax.parallel import watch
from fmjax.parallel.hosts import from_first_process
from fmjax.parallel.sharding import path_name
from fmjax.training.disk import disk_full
from fmjax.training.state import TrainState

log = logging.getLogger("fmjax")

ITEMS = ("params", "train", "ema", "wide_ema", "carry")
"""The trees of a checkpoint; only the first two are in every one."""


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
            item_names=(*ITEMS, "meta"),
        )
        self._started: int | None = None

    def save(self, state: TrainState, meta: dict) -> None:
        """Starts saving `state` as the checkpoint of its step; returns when the arrays are copied, not yet written.

        Raises SaveError when the disk is too full for this save or the one before it; other failures as they come.
        """
        self.finish()
        step = int(state.step)
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        items["meta"] = ocp.args.JsonSave(meta)
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
                write_manifest(self.folder / str(self._started))
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

        A damaged checkpoint is reported, moved to `WORKDIR/damaged_checkpoints/`, and the one before it is used. Of
        several processes the first decides so for all.

        Args:
          shapes: a TrainState of `jax.ShapeDtypeStruct` with the shardings to restore to, whatever they were before.

        Raises CheckpointError when there are checkpoints and none is usable, or when the newest holds other arrays than
        `shapes`; exhausted memory and failures to reach the files say nothing about a checkpoint and are raised as they
        are.
        """
        damaged: dict[int, str] = {}
        while True:
            step, damaged = self._told(lambda: self._newest(shapes, damaged))
            if step is None:
                break
            try:
                restored = self._restore(step, shapes)
            except Exception as error:
                if not _is_damage(error):
                    raise
                if jax.process_count() > 1:  # the others may have read it, and wait for this one
                    raise CheckpointError(
                        f"the checkpoint of step {step} in {str(self.folder)!r} cannot be read ({first_line(error)}); "
                        "move it elsewhere to resume from the one before"
                    ) from error
                damaged[step] = _reported(step, error)
                continue
            if damaged:
                self._set_aside(damaged)
            return restored
        if damaged:
            listed = "; ".join(f"step {step}: {what[:200]}" for step, what in damaged.items())
            raise CheckpointError(
                f"no checkpoint in {str(self.folder)!r} can be read ({listed}). Nothing was changed; "
                "restore a copy, or start in a new --workdir"
            )
        return None

    def _told(self, find: Callable[[], tuple[int | None, dict[int, str]]]) -> tuple[int | None, dict[int, str]]:
        """What process 0 finds, in every process."""
        found = json.dumps(find()).encode() if jax.process_index() == 0 else b""
        step, damaged = json.loads(from_first_process(found))
        return step, {int(one): what for one, what in damaged.items()}

    def _newest(self, shapes: TrainState, damaged: dict[int, str]) -> tuple[int | None, dict[int, str]]:
        """(the newest step whose files are whole, or None; what is wrong with damaged and newer ones).

        Raises CheckpointError where its arrays are not those of `shapes`.
        """
        damaged = dict(damaged)
        for step in sorted(set(self.manager.all_steps()) - damaged.keys(), reverse=True):
            folder = self.folder / str(step)
            items = _items(shapes)
            try:
                verify(folder)
                there = [name for name in ITEMS if (folder / name).is_dir()]
                saved = {name: dict(ocp.StandardCheckpointHandler().metadata(folder / name)) for name in there}
            except Exception as error:
                if not _is_damage(error):
                    raise
                damaged[step] = _reported(step, error)
                continue
            self._check_shapes(step, saved, items)
            return step, damaged
        return None, damaged

    def _check_shapes(self, step: int, saved: dict[str, Any], items: dict[str, Any]) -> None:
        """Raises CheckpointError naming an array that the checkpoint has otherwise than the run: code has changed."""
        before, now = _shapes(saved), _shapes(items)
        differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if not differing:
            return
        ways = "go on with the code that saved it, or start in a new --workdir"
        if all(one.startswith(("train/", "carry/")) for one in differing):
            ways += f", from its parameters with --config.train.init_from={self.folder.parent}"
        first = differing[0]
        item, _, name = first.partition("/")
        there, here = (f"of shape {found[first]}" if first in found else "missing" for found in (before, now))
        what = f"of {item!r}, {name!r} is {there} there, and {here} here ({len(differing)} of its arrays differ)"
        for item in sorted(saved.keys() ^ items.keys(), key=ITEMS.index):
            names = ", ".join(one for one in differing if one.startswith(f"{item}/"))
            holds, has = ("a", "none") if item in saved else ("no", "one")
            what = f"it holds {holds} {item}, and this run has {has} ({names})"
        raise CheckpointError(
            f"the checkpoint of step {step} in {str(self.folder)!r} does not fit this run: {what}. Nothing was "
            f"changed; {ways}"
        )

    def _restore(self, step: int, shapes: TrainState) -> tuple[TrainState, dict]:
        items = {name: ocp.args.StandardRestore(tree) for name, tree in _items(shapes).items()}
        items["meta"] = ocp.args.JsonRestore()
        watch.at(f"the restoring of step {step}", limited=False)
        found = self.manager.restore(step, args=ocp.args.Composite(**items))
        found = dict(found.items())
        train = found["train"]
        state = TrainState(
            train["step"], train["skipped"], found["params"], train["opt_state"], found.get("ema"), found.get("carry"),
            found.get("wide_ema"),
        )  # fmt: skip
        return state, found["meta"]

    def _set_aside(self, steps: Iterable[int]) -> None:
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
        watch.barrier("the moving of damaged checkpoints")
        self.manager.reload()


def _reported(step: int, error: Exception) -> str:
    log.error("CHECKPOINT OF STEP %d IS DAMAGED and is not used: %s", step, first_line(error, 500))
    return first_line(error, 500)


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


def _items(state: TrainState) -> dict[str, Any]:
    """The trees of a checkpoint by the name of their item."""
    train = {"step": state.step, "skipped": state.skipped, "opt_state": state.opt_state}
    items = {"params": state.params, "train": train, "ema": state.ema, "carry": state.carry}
    items["wide_ema"] = state.wide_ema
    return {name: tree for name, tree in items.items() if tree is not None}


def _shapes(items: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of every array, by its path."""
    return {path_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_flatten_with_path(items)[0]}
