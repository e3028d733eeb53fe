"""Teach: `python -m fmjax.commands.teach --config=configs/NAME.py --output=FOLDER --top_k=64 [--rows=N]
[--dtype=float16] [--config.a.b=value ...]`.

What the teacher of a config's objective says of the rows of its data, computed once: for a teacher that is larger than
the device which its student is trained on, or for many students of one. Of each of its distributions the likeliest
answers are kept, with the probability of all others together. Writes the rows with that to a folder that the data
`kept` read; a run with data.name = "kept", data.source = FOLDER and objective.teacher = "" learns from them
(configs/distill_smollm2.py). Of what is evaluated the first --eval_rows are kept alike.

Interrupted, the same command goes on where it was. The loss of a run is never more than with the teacher itself: what
it leaves out is how teacher and student differ among the other answers. In KL(teacher || student) that is weighed by
the teacher's probability of these, which the command tells; in KL(student || teacher) by the student's, which nothing
tells. With a --top_k of all answers it is the same loss.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Iterator

import numpy as np

from fmjax.commands import cli
from fmjax.errors import InputError
from fmjax.layers.checks import COMPUTE_DTYPES

DTYPES = ("float16", "float32")
ROWS = 10_000


def parse(argv: list[str]):
    """(flags, overrides of the config) of a command line. Raises InputError naming the flag that is wrong."""
    overrides, rest = cli.split_overrides(argv)
    parser = cli.ArgumentParser("python -m fmjax.commands.teach", __doc__.split("\n")[0])
    add = parser.add_argument
    add("--config", required=True, help="a Python file with get_config(), as for fmjax.train")
    add("--output", required=True, help="the folder to write, which is not there yet")
    add("--top_k", type=cli.number(int, low=1), default=64, help="answers kept of each distribution (default: 64)")
    add("--rows", type=cli.number(int, low=1), help=f"rows to train on (default: {ROWS}, or all where there are fewer)")
    add("--eval_rows", type=cli.number(int, low=1), default=512, help="of each evaluated set at most (default: 512)")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="of log-probabilities in the files (default: float16)")
    add("--batch_size", type=cli.number(int, low=1), default=16, help="rows that the teacher reads at once")
    add("--compute_dtype", default="float32", choices=COMPUTE_DTYPES, help="that the teacher computes in")
    add("--mesh", type=cli.mesh, help="split the teacher over all devices, such as fsdp:2,tensor:2")
    return parser.parse_args(rest), overrides


def main(argv: list[str]) -> None:
    flags, overrides = parse(argv)
    cli.log_to_stderr()
    from fmjax import config as configs
    from fmjax.cache_folder import use_compilation_cache

    config = configs.resolve(configs.apply_overrides(configs.load_config_file(flags.config), overrides))
    output = cli.new_output(flags.output)
    use_compilation_cache()
    rows, rest = teach(
        config, output, flags.rows, flags.top_k, flags.eval_rows, flags.batch_size, flags.dtype, flags.compute_dtype,
        flags.mesh, progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(f"wrote {output}: {rows} rows; the likeliest {flags.top_k} leave {rest:.2%} of the teacher's word out")


def teach(
    config, output: pathlib.Path, rows: int | None, top_k: int, eval_rows: int = 512, batch_size: int = 16,
    dtype: str = "float16", compute_dtype: str = "float32", mesh=None, progress: bool = False,
) -> tuple[int, float]:  # fmt: skip
    """Writes the folder; see the module.

    Args:
      config: a resolved config, whose objective has a teacher.
      rows: of the training data, the first ones; None is ROWS, or all where there are fewer.
      top_k: answers kept of each distribution.
      eval_rows: of each set that is evaluated, the first ones, at most.
      batch_size: rows that the teacher reads at once.
      dtype: of log-probabilities in the files.
      compute_dtype, mesh: as for `fmjax.load`.

    Returns: (rows, the mean probability that the teacher has left for all other answers, of the places that are
      learnt).
    Raises InputError where the objective has no teacher, or one of fewer answers than `top_k`, or there are fewer rows
    than are asked for, or what is begun in `output` is something else.
    """
    from fmjax.assemble import open_data
    from fmjax.cache_folder import cache_dir
    from fmjax.commands.kept_folder import continued, note_done, write_rows
    from fmjax.config import build
    from fmjax.config_values import json_copy
    from fmjax.data.codecs.base import save_codecs
    from fmjax.data.kept import MADE_BY, MADE_OF, STOP_IDS, TRAIN, made_of
    from fmjax.load import check_cut_alike, content_of, load
    from fmjax.objectives import OBJECTIVES
    from fmjax.objectives.taught import NUM_ANSWERS, TEMPERATURE, Taught
    from fmjax.training.other_models import check_normalised

    objective = build(config["objective"], OBJECTIVES)
    if not isinstance(objective, Taught) or not objective.teacher or not objective.ANSWERS:
        raise InputError(
            f"objective.name = {config['objective']['name']!r} has no objective.teacher whose word could be kept; take "
            "'distillation', and name one"
        )
    data = open_data(config, cache_dir(), progress=progress)
    check_cut_alike("the objective's model 'teacher'", objective.teacher, data)
    check_normalised("teacher", objective.teacher, data.codecs)
    rows = _number_of(rows, None if data.drawn_anew else data.num_train)
    teacher = load(objective.teacher, dtype=compute_dtype, mesh=mesh)
    answers = getattr(teacher.module, objective.ANSWERS)
    if top_k > answers:
        raise InputError(f"--top_k = {top_k} is more than the {answers} answers that the teacher has")
    made_by = {
        "teacher": content_of(teacher), TEMPERATURE: str(float(objective.temperature)), NUM_ANSWERS: str(answers),
        **{f"rows/{name}": value for name, value in data.identity.items()},
    }  # fmt: skip
    section = json_copy(made_of(config["data"].to_dict()))
    what = {
        **made_by, "made_of": section, "seed": config["seed"],
        "objective": config["objective"]["name"], "rows": rows, "eval_rows": eval_rows, "top_k": top_k, "dtype": dtype,
        "compute_dtype": compute_dtype, "batch_size": batch_size,
    }  # fmt: skip
    splits = {TRAIN: (data.train, rows)}
    splits |= {name: (one, min(len(one), eval_rows)) for name, one in data.evaluation.items()}
    speak = _speaker(objective, teacher, answers, batch_size, top_k, dtype)
    with continued(output, what) as (folder, done):
        for split, (source, count) in splits.items():
            first = done.get(split, 0)
            (folder / split).mkdir(exist_ok=True)
            places = _batches(count, batch_size, first, f"rows of {split}" if progress else None)
            made = (speak(_plain(source, some)) for some in places)
            write_rows(folder / split, made, count, first, lambda rows, split=split: note_done(folder, split, rows))
        for name, values in ((MADE_BY, made_by), (MADE_OF, section), (STOP_IDS, list(map(int, data.stop_ids)))):
            (folder / name).write_text(json.dumps(values) + "\n", encoding="utf-8")
        save_codecs(data.codecs, folder)
        if data.tokenizer is not None:
            data.tokenizer.save(folder)
        rest = _left_out(folder / TRAIN)
    return rows, rest


def _number_of(rows: int | None, there: int | None) -> int:
    """How many rows are kept, of those that come before any comes again if that is known. Raises InputError for more
    of them than there are."""
    if rows is None:
        return ROWS if there is None else min(ROWS, there)
    if there is not None and rows > there:
        raise InputError(
            f"--rows = {rows} is more than the {there} rows that these data have before any comes again: give at most "
            f"{there}, or leave it out"
        )
    return rows


def _batches(count: int, size: int, first: int, told: str | None) -> Iterator[range]:
    """Numbers of rows from `first` on, `size` at a time."""
    from tqdm import tqdm

    bar = tqdm(total=count, initial=first, desc=told, unit=" rows", disable=told is None, dynamic_ncols=True)
    with bar:
        for start in range(first, count, size):
            yield range(start, min(start + size, count))
            bar.update(min(size, count - start))


def _plain(source, places: range) -> dict[str, np.ndarray]:
    """The rows of these numbers."""
    from fmjax.data.base import stacked

    return stacked([source[place] for place in places])


def _speaker(
    objective, teacher, answers: int, size: int, top_k: int, dtype: str
) -> Callable[[dict], dict[str, np.ndarray]]:
    """Gives a batch of at most `size` rows with what the teacher, of so many answers, says of each."""
    import jax

    from fmjax.objectives.base import OtherModel
    from fmjax.objectives.taught import KEPT

    served = OtherModel(teacher.module, teacher.params, teacher.state)
    say = jax.jit(lambda served, batch: objective.likeliest(served, batch, top_k))
    kinds = dict(zip(KEPT, ("uint16" if answers <= 2**16 else "int32", dtype, "float32")))

    def speak(batch):
        count = len(next(iter(batch.values())))
        filled = {name: np.concatenate([x, np.repeat(x[-1:], size - count, axis=0)]) for name, x in batch.items()}
        with teacher.inference():
            found = jax.device_get(say(served, filled))
        return batch | {name: np.asarray(x[:count]).astype(kinds[name]) for name, x in found.items()}

    return speak


def _left_out(folder: pathlib.Path) -> float:
    """The mean probability of what was not kept, over the places that are learnt."""
    opened = lambda name: np.load(folder / f"{name}.npy", mmap_mode="r")
    rest, weights = opened("teacher_rest"), opened("loss_weights")
    if (folder / "masked_positions.npy").is_file():
        weights = np.take_along_axis(weights, opened("masked_positions"), axis=1)
    total, count = 0.0, 0.0
    for start in range(0, len(rest), 1024):
        some = slice(start, start + 1024)
        total += float((np.exp(rest[some], dtype=np.float64) * weights[some]).sum())
        count += float(weights[some].sum(dtype=np.float64))
    return total / max(count, 1.0)


if __name__ == "__main__":
    cli.leave(cli.run(main))
