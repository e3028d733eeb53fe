"""Evaluate: `python -m fmjax.evaluate --model=DIR --tasks=a,b --output=DIR`, or `fmjax.evaluate(m, tasks=["a"])`.

Writes `results.json` and `samples/TASK.jsonl` under the output folder and prints a table. `--list` prints one line a
task, its name first. This module is itself callable, as `fmjax.load` is and for the same reason.
"""

import logging
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fmjax.commands import cli, evaluation_folder, launch
from fmjax.commands.evaluation_folder import make_folders
from fmjax.errors import InputError
from fmjax.inference.checks import make_callable
from fmjax.layers.checks import COMPUTE_DTYPES

log = logging.getLogger("fmjax")


def evaluate(
    model,
    tasks: Sequence[Any] | str,
    *,
    limit: int | None = None,
    num_shots: int | None = None,
    data_dir: str | pathlib.Path | None = None,
    task_path: Sequence[str | pathlib.Path] = (),
    output: str | pathlib.Path | None = None,
    answers: str | pathlib.Path | None = None,
    predictions: str | pathlib.Path | None = None,
    probabilities: bool = False,
    pictures: int | str = 0,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates a model on tasks.

    Args:
      model: from `fmjax.load`, or what it takes.
      tasks: names (`python -m fmjax.evaluate --list` shows them) or Task objects; one text, names separated by commas;
        or what `fmjax.tasks.prepared.find_tasks` gave.
      limit: only the first `limit` documents of each task.
      num_shots: solved examples in each prompt; None is each task's own number.
      data_dir: folder with the tasks' files; None is the variable FMJAX_DATA.
      task_path: Python files with further tasks.
      output: folder to write `results.json` and `samples/` to, after each task; None writes nothing. What an earlier
        evaluation wrote there is replaced, and a warning says so where it was of other tasks.
      answers: folder where answers are kept as they come, so that an interrupted evaluation goes on and a repeated one
        takes no time; None is `output/answers`, or none without an output.
      predictions: FILE.csv, what one task of classification takes each document for, `id,label`; None writes nothing.
      probabilities: whether that file has a column more for each class, with its probability.
      pictures: of how many images of each task `output/pictures/TASK.png` shows what the answers come from; with kinds
        of pictures (`fmjax.tasks.pictures.KINDS`), "8:rollout,gradient".
      seed: of the choice of examples, of continuations that are drawn, of training a probe, of the bootstrap.
      progress: show progress bars on stderr.

    Returns: what `results.json` holds: {"results": {task: {metric: value, metric + "_stderr": value}}, ...}.
    Raises: InputError, before anything is computed, for an unknown task, missing files, an unusable model.
    """
    import jax

    from fmjax.inference.fingerprint import model_fingerprint
    from fmjax.load import Model, load
    from fmjax.tasks.predictions import write_predictions
    from fmjax.tasks.prepared import find_tasks
    from fmjax.tasks.report import make_report
    from fmjax.tasks.runner import run_tasks

    tasks = find_tasks(tasks, task_path)
    check_table(predictions, probabilities, tasks)
    shown = _pictures(pictures, output)
    output, answers = make_folders(output, answers)
    model = model if isinstance(model, Model) else load(model)
    fingerprint = model_fingerprint(model)
    options = dict(limit=limit, seed=seed, data_dir=data_dir or os.environ.get("FMJAX_DATA") or None)

    def report(found) -> dict[str, Any]:
        return make_report(model, found, fingerprint=fingerprint, is_complete=len(found) == len(tasks), **options)

    def write(found) -> None:
        evaluation_folder.write(report(found), found, tasks, output)

    found = run_tasks(
        model, tasks, num_shots=num_shots, answers_dir=answers, fingerprint=fingerprint, inspect=shown,
        after_task=None if output is None else write, progress=progress, **options,
    )  # fmt: skip
    if predictions is not None and jax.process_index() == 0:
        (result,) = found.values()
        write_predictions(result.predictions, pathlib.Path(predictions).expanduser(), probabilities)
    return report(found)


def _pictures(pictures: int | str, output):
    """What makes the pictures that are asked for; None for none. Raises InputError where there is no place for them."""
    import jax

    from fmjax.tasks.pictures import Pictures, asked

    count, kinds = asked(pictures)
    if not count:
        return None
    if output is None:
        raise InputError(f"pictures = {pictures} are written to the output, and there is none; give output")
    return Pictures(None if jax.process_index() else pathlib.Path(output) / "pictures", count, kinds)


def check_table(predictions, probabilities: bool, tasks: Mapping[str, Any]) -> None:
    """Raises InputError where a file of predictions is asked for that cannot be written."""
    from fmjax.tasks.predictions import check_predictions

    if predictions is not None:
        check_predictions(pathlib.Path(predictions).expanduser(), list(tasks.values()))
    elif probabilities:
        raise InputError("probabilities are columns of a file of predictions; give --predictions=FILE.csv too")


def listing(task_path: Sequence[str] = ()) -> str:
    """One line a task, its name first."""
    from fmjax.tasks.catalogue import catalogue

    known = sorted(catalogue(task_path).items())
    width = max(len(name) for name, _ in known)
    return "\n".join(f"{name.ljust(width)}  {_listed(get)}" for name, get in known)


def _listed(get) -> str:
    from fmjax.tasks.capabilities import in_words

    try:
        task = get()
    except InputError as error:  # a package's that cannot be loaded, which is no reason not to list the others
        return f"not to be used: {' '.join(str(error).split())}"
    about = f"v{task.version}  {', '.join(task.metrics)}: {task.description}; reads {task.needs}"
    return f"{about}; asks for {in_words(task.uses)}"


def print_comparison(first: str, second: str, flags) -> None:
    """The table of two evaluations; the plot goes to `--output`, if given."""
    from fmjax.tasks import compare

    differences = compare.compare(first, second, task_path=flags.task_path, seed=flags.seed)
    print(compare.table(differences))
    for note in compare.notes(first, second):
        print(f"note: {note}")
    if flags.output:
        folder = pathlib.Path(flags.output)
        folder.mkdir(parents=True, exist_ok=True)
        compare.plot(differences, folder / "compare.png", (first, second))
        print(f"plot: {folder / 'compare.png'}")


def parse(argv: list[str]):
    parser = cli.ArgumentParser("python -m fmjax.evaluate", "Evaluate a model on tasks.")
    parser.add_argument("--model", help="workdir of a run, one of its checkpoints, or a saved model")
    parser.add_argument("--adapter", help="an adapter of the model: a run that trained it, or a folder that PEFT wrote")
    parser.add_argument("--tasks", help="names separated by commas; --list shows them")
    parser.add_argument("--task_path", action="append", default=[], help="a Python file with further tasks; repeatable")
    parser.add_argument("--num_shots", type=cli.number(int, low=0), help="examples in the prompt")
    parser.add_argument("--limit", type=cli.number(int, low=1), help="only this many documents of each task")
    parser.add_argument("--data_dir", help="folder with the tasks' files (or the variable FMJAX_DATA)")
    parser.add_argument("--output", help="folder for results.json and samples/")
    parser.add_argument("--answers", help="folder where answers are kept as they come (default: OUTPUT/answers)")
    parser.add_argument("--predictions", help="FILE.csv: what one task of classification takes each document for")
    parser.add_argument("--probabilities", action="store_true", help="with --predictions: a column a class more")
    parser.add_argument(
        "--pictures", default="0", metavar="N[:KIND,...]",
        help="of N images a task, OUTPUT/pictures/TASK.png shows what its answers come from, such as "
        "8:occlusion,attention,rollout,gradient",
    )  # fmt: skip
    parser.add_argument("--seed", type=cli.number(int, low=0), default=0, help="of examples, draws, probes, bootstrap")
    parser.add_argument("--mesh", type=cli.mesh, help="split the model over all devices, such as fsdp:2,tensor:2")
    about = "weights that are published in few bits (GGUF) stay so"
    parser.add_argument("--quantized", action="store_true", help=about)
    parser.add_argument("--dtype", default="float32", choices=COMPUTE_DTYPES, help="that is computed in")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two outputs: print their paired differences")
    parser.add_argument("--list", action="store_true", help="print the tasks, one a line, and stop")
    launch.add_flags(parser)
    flags = parser.parse_args(argv)
    missing = [f"--{name}" for name in ("model", "tasks", "output") if not getattr(flags, name)]
    if missing and not (flags.list or flags.compare):
        raise InputError(f"missing {', '.join(missing)}; --list shows the tasks, --help the flags")
    return flags


def main(argv: list[str]) -> None:
    flags = parse(argv)
    if flags.list:
        print(listing(flags.task_path))
        return
    if flags.compare:
        print_comparison(*flags.compare, flags)
        return
    cli.log_to_stderr()

    import jax

    from fmjax.cache_folder import use_compilation_cache

    use_compilation_cache()
    with launch.together(flags):
        _evaluate(flags, first=jax.process_index() == 0)


def _evaluate(flags, first: bool) -> None:
    """Evaluates as the flags say; the first process shows progress and prints the results."""
    from fmjax.load import load
    from fmjax.tasks.pictures import asked
    from fmjax.tasks.report import cost_line, table
    from fmjax.tasks.prepared import find_tasks

    # Before the model is loaded, which may take long.
    tasks = find_tasks(flags.tasks, flags.task_path)
    check_table(flags.predictions, flags.probabilities, tasks)
    count, _ = asked(flags.pictures)
    make_folders(flags.output, flags.answers)
    progress = first and sys.stderr.isatty()
    options = dict(mesh=flags.mesh, progress=progress, adapters=flags.adapter, quantized=flags.quantized)
    model = load(flags.model, dtype=flags.dtype, **options)
    try:
        report = evaluate(
            model,
            tasks,
            limit=flags.limit,
            num_shots=flags.num_shots,
            data_dir=flags.data_dir,
            output=flags.output,
            answers=flags.answers,
            predictions=flags.predictions,
            probabilities=flags.probabilities,
            pictures=flags.pictures,
            seed=flags.seed,
            progress=first,
        )
    except KeyboardInterrupt:
        if first:
            log.warning("interrupted; what was answered is kept, and the same command goes on from there")
        raise
    if first:
        print(table(report))
        print(cost_line(report))
        if count:
            print(f"pictures: {pathlib.Path(flags.output) / 'pictures'}")
        if flags.predictions:
            print(f"predictions: {flags.predictions}")


make_callable(__name__, evaluate)

if __name__ == "__main__":
    cli.leave(cli.run(main))
