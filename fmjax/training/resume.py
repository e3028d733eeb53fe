"""What may change between a run and its resumption, and the lock that keeps two runs out of one folder."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping

from fmjax import file_lock
from fmjax.config import OPTIONAL, PLUGINS, SETTINGS, build, load_workdir_config
from fmjax.config_fields import field_types, nested_registry
from fmjax.config_values import differing_keys, json_copy
from fmjax.errors import CheckpointError, ConfigError, DataError
from fmjax.models import MODELS
from fmjax.models.state import state_collections
from fmjax.objectives import OBJECTIVES
from fmjax.registry import Registry
from fmjax.training.disk import disk_full

LOCK = ".lock"

# Keys that say how long, how often and on what, not what is learnt. Plugins add theirs as `RESUME_FREE`.
FREE = (
    "train.steps", "train.max_minutes", "train.log_every", "train.eval_every", "train.eval_batches",
    "train.sample_every", "train.checkpoint_every", "train.keep_last", "train.keep_every", "train.final_tasks",
    "train.final_tasks_limit", "train.tasks_every", "train.profile_steps", "train.tensorboard", "train.nonfinite",
    "mesh.", "published",
)  # fmt: skip


def begun_steps(workdir: pathlib.Path) -> int | None:
    """`train.steps` of the run in `workdir`, or None where there is none."""
    return load_workdir_config(workdir)["train"]["steps"] if (workdir / "config.json").exists() else None


def check_config(workdir: pathlib.Path, config, complete: bool = True) -> None:
    """Raises ConfigError, listing keys and values, when `config` would continue the run in `workdir` as another one.

    With `complete` False, a model's field that is None may still be filled in by the data and is not compared.
    """
    if not (workdir / "config.json").exists():
        return
    now = config.to_dict()
    rows = differing_keys(with_defaults(load_workdir_config(workdir)), now)
    plugins_free = resume_free(now)
    if parts_are_alike(now):
        plugins_free.append("train.accumulate_steps")
    refused = [row for row in rows if not row[0].startswith(FREE) and row[0] not in plugins_free]
    if not complete:
        refused = [(key, old, new) for key, old, new in refused if new is not None or not key.startswith("model.")]
    if refused:
        listed = "\n".join(f"  {key}: {old!r} in the run, {new!r} now" for key, old, new in refused)
        raise ConfigError(
            f"{str(workdir)!r} holds a run with another configuration:\n{listed}\n"
            "Use another --workdir for a new run, or put these keys back to resume this one"
        )


def with_defaults(saved: Mapping) -> dict:
    """A saved config with the keys it lacks, because the code had no such field yet, at their fields' defaults."""
    filled = json_copy(saved)
    for key, settings in SETTINGS.items():
        _fill_defaults(filled.get(key), settings)
    for key, registry in (PLUGINS | OPTIONAL).items():
        _fill_plugin(filled.get(key), registry)
    return filled


def _fill_plugin(section, registry: Registry) -> None:
    if isinstance(section, dict) and "name" in section:
        _fill_defaults(section, registry.get(section["name"]))


def _fill_defaults(section, plugin) -> None:
    if not isinstance(section, dict):
        return
    for key, (annotation, default) in field_types(plugin).items():
        if key not in section and default is not dataclasses.MISSING:
            section[key] = json_copy(default)
        nested = nested_registry(annotation)
        if nested is not None:
            _fill_plugin(section.get(key), nested)


def resume_free(config: Mapping) -> list[str]:
    """Dotted keys that the plugins of a config let change between a run and its resumption.

    A plugin names such fields, which do not change what is learnt, in its class attribute `RESUME_FREE`; an objective
    those that follow from others in its method `resume_free`.
    """
    objective = build(config["objective"], OBJECTIVES)
    return [f"objective.{field}" for field in getattr(objective, "resume_free", tuple)()] + [
        f"{key}.{field}"
        for key, registry in (PLUGINS | OPTIONAL).items()
        if key in config
        for field in getattr(registry.get(config[key]["name"]), "RESUME_FREE", ())
    ]


def parts_are_alike(config: Mapping) -> bool:
    """Whether a step learns the same in however many parts it computes its batch: where the objective has `ROWS_APART`
    (`fmjax.objectives.base`) and the model neither dropout, whose masks are drawn for a part, nor state
    (`fmjax.models.state`), which a part makes of its rows."""
    objective = OBJECTIVES.get(config["objective"]["name"])
    if state_collections(build(config["model"], MODELS)):
        return False
    return getattr(objective, "ROWS_APART", False) and not _has_dropout(config["model"])


def _has_dropout(section: Mapping) -> bool:
    """Whether a section, or one inside it, such as a tower's, has a rate of dropout above 0."""
    inside = [value for value in section.values() if isinstance(value, Mapping)]
    own = (value for key, value in section.items() if "dropout" in key and not isinstance(value, Mapping))
    return any(own) or any(map(_has_dropout, inside))


def check_identity(workdir: pathlib.Path, saved: dict, now: dict) -> None:
    """Raises DataError when the data or tokenizer are not those the checkpoint was trained on."""
    rows = differing_keys(saved, now)
    if rows:
        listed = "\n".join(f"  {key}: {old!r} in the run, {new!r} now" for key, old, new in rows)
        raise DataError(
            f"the data have changed since the run in {str(workdir)!r} was saved:\n{listed}\n"
            "Put the data back to resume, or start a new --workdir"
        )


def check_content(workdir: pathlib.Path, saved: dict, now: dict) -> None:
    """Raises CheckpointError when another model in the step, a codec or a file of the objective is not the one the run
    was trained with."""
    for kind in ("model", "codec", "file"):
        for name, before in saved.get(kind, {}).items():
            if now.get(kind, {}).get(name) != before:
                raise CheckpointError(
                    f"the {kind} {name!r} is not the one that the run in {str(workdir)!r} was trained with (its "
                    f"content was {before}, is {now.get(kind, {}).get(name)}); put it back to resume, or start a new "
                    "--workdir"
                )


@contextlib.contextmanager
def locked(workdir: pathlib.Path):
    """Makes `workdir` and holds it for this process; the lock goes with the process, however it ends.

    Where the file system has no locks, that is logged and nothing is held. Folders that were made here, and in which
    nothing was written in the meantime, are removed at the end.

    Raises ConfigError when another process trains there, or when `workdir` cannot be a folder to write to.
    """
    made = []
    try:
        made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
        workdir.mkdir(parents=True, exist_ok=True)
        # Unbuffered: on a full disk who holds the lock remains unsaid, and closing the file does not fail either.
        file = (workdir / LOCK).open("ab+", buffering=0)
    except OSError as error:
        _remove_empty(made)
        if disk_full(error):
            raise
        reason = f"{error.strerror}: {error.filename!r}"
        raise ConfigError(f"--workdir={workdir} cannot be made a folder to write to: {reason}") from None
    with file:
        if not file_lock.take(file, workdir):
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "unknown process"
            raise ConfigError(f"{str(workdir)!r} is in use by another run ({holder})")
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()}".encode())
        try:
            yield
        finally:
            if made and not any(path.is_file() for path in workdir.rglob("*") if path.name != LOCK):
                (workdir / LOCK).unlink(missing_ok=True)
                _remove_empty([*workdir.iterdir(), *made])


def _remove_empty(folders: Iterable[pathlib.Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
