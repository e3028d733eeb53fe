"""The evaluation tasks of `train.final_tasks`: what can be known of them at the start is checked at the start."""

import os
import pathlib

import jax

from fmjax.errors import ConfigError

SEED = 0


def check_names(names) -> None:
    """Raises InputError for a name that is no task or stands twice."""
    if not names:
        return
    from fmjax.tasks.catalogue import get_task

    found = [get_task(name).name for name in names]
    for name in found:
        if found.count(name) > 1:
            raise ConfigError(f"train.final_tasks: task {name!r} is given twice")


def check(names, data, module, config: dict) -> None:
    """Raises InputError, naming the task, for what would end a run at its very end.

    That is documents that cannot be read or are none, or a model that cannot answer: that lacks an ability which the
    task asks for, another model that its values are made with, or BOS and EOS where whole texts are scored.

    config: of the run, whose objective says what its models do.
    """
    if not names:
        return
    from fmjax.errors import InputError
    from fmjax.inference.model import Model
    from fmjax.tasks.catalogue import get_task
    from fmjax.tasks.capabilities import MAKES, check_capabilities
    from fmjax.tasks.protocol import Rolling, TaskContext
    from fmjax.tasks.prepared import prepare
    from fmjax.tasks.trained_on import source_of

    model = Model(module, {}, config, data.tokenizer, codecs=dict(data.codecs)).served
    run_data = config.get("data") or {}
    context = TaskContext(_data_dir(), lambda: data, SEED, run_source=source_of(config), run_data=run_data)
    for name in names:
        try:
            prepared = prepare(get_task(name), context, limit=1)
            check_capabilities(model, [prepared])
            if MAKES in prepared.task.uses:
                _check_opened(model.objective)
        except InputError as error:
            raise type(error)(f"train.final_tasks: {error}") from None
        asks = {type(request) for group in prepared.requests for request in group}
        if Rolling in asks and data.tokenizer.prefix_id is None:
            raise ConfigError(
                f"train.final_tasks, task {name}: scores whole texts from BOS or EOS, and the tokenizer has neither"
            )


def _check_opened(objective) -> None:
    """Raises InputError where a model that values are made with lies nowhere; those in the step are there."""
    from fmjax.errors import InputError
    from fmjax.load import find

    in_step = getattr(objective, "models", dict)()
    for name in getattr(objective, "OPENED", ()):
        path = getattr(objective, name)
        if path is None or name in in_step:
            continue
        try:
            find(path)
        except InputError as error:
            raise type(error)(f"objective.{name}, which values are made with: {error}") from None


def run(names, model, data, limit: int, progress: bool, folder: pathlib.Path):
    """Results by task name; process 0 writes `results.json` and `samples/`, as `fmjax.evaluate` does, to `folder`.

    The report names the run's folder and step in place of a fingerprint, for which every parameter would be read.
    """
    from fmjax.tasks.report import make_report, write_report
    from fmjax.tasks.runner import run_tasks
    from fmjax.tasks.sample_log import write_samples

    results = run_tasks(model, names, data=data, limit=limit, seed=SEED, data_dir=_data_dir(), progress=progress)
    if jax.process_index() == 0:
        write_samples(results, folder / "samples")
        options = dict(limit=limit, seed=SEED, fingerprint=None, data_dir=_data_dir())
        write_report(make_report(model, results, **options), folder)
    return results


def _data_dir() -> pathlib.Path | None:
    folder = os.environ.get("FMJAX_DATA")
    return pathlib.Path(folder) if folder else None
