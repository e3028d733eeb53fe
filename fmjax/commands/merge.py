"""Merge: `python -m fmjax.commands.merge --method=average|task|slerp|ties --model=A --model=B --output=DIR`.

Several models of one architecture become one, without training (`fmjax.adapt.merging`):

    average   the mean of parameters, by --weight
    task      --base, and to it each model's difference from it times its --weight; a negative one takes a task away
    slerp     from the first model to the second along the arc between them, --t of the way
    ties      --base, and to it the differences of which the largest --density stay and agree in sign, times --scale

A model is what `--model` of other commands is. Nothing is at `--output` unless all of it is.
"""

import dataclasses
import sys

from fmjax.commands import cli
from fmjax.errors import InputError

READS = {
    "average": ("weight",), "task": ("base", "weight"), "slerp": ("t",),
    "ties": ("base", "weight", "density", "scale"),
}  # fmt: skip
"""The flags that a method reads, besides those of all."""
DEFAULTS = {"t": 0.5, "density": 0.2, "scale": 1.0}


def parse(argv: list[str]):
    parser = cli.ArgumentParser("python -m fmjax.commands.merge", "Merge models of one architecture.")
    add = parser.add_argument
    add("--method", required=True, choices=tuple(READS), help="average, task (arithmetic), slerp or ties")
    add("--model", action="append", default=[], help="a model, as of other commands; repeated for each")
    add("--output", required=True, help="folder to be made")
    add("--to", default="fmjax", choices=("hf", "fmjax"), help="what to write (default: fmjax)")
    add("--base", help="what the models were fine-tuned from; of task and ties")
    add("--weight", type=float, action="append", help="of a model, in their order; one for each, or none (all 1)")
    add("--t", type=cli.number(float, low=0, high=1), help="of slerp: 0 is the first, 1 the second (default: 0.5)")
    add("--density", type=cli.number(float, low=0, high=1, exclude_low=True), help="of ties: what stays (default: 0.2)")
    add("--scale", type=float, help="of ties: of what is added to the base (default: 1)")
    flags = parser.parse_args(argv)
    for name in ("base", "weight", *DEFAULTS):
        if getattr(flags, name) is not None and name not in READS[flags.method]:
            raise InputError(f"--{name} has no meaning with --method={flags.method}; leave it out")
    if "base" in READS[flags.method] and flags.base is None:
        raise InputError(f"--method={flags.method} adds to what the models were fine-tuned from: give --base")
    few = 1 if flags.method == "task" else 2
    if len(flags.model) < few or (flags.method == "slerp" and len(flags.model) > 2):
        wanted = "two" if flags.method == "slerp" else f"at least {few}"
        raise InputError(f"--method={flags.method} takes {wanted} --model, got {len(flags.model)}")
    if flags.weight is not None and len(flags.weight) != len(flags.model):
        raise InputError(f"{len(flags.weight)} --weight for {len(flags.model)} --model; give one a model, or none")
    return flags


def main(argv: list[str]) -> None:
    flags = parse(argv)
    cli.log_to_stderr()

    import jax

    from fmjax.adapt import merging
    from fmjax.interop.exporter import check_new
    from fmjax.interop.family import different_fields
    from fmjax.interop.weights import flatten, unflatten
    from fmjax.layers.weights import merged
    from fmjax.load import load

    check_new(flags.output)
    paths = [*([flags.base] if flags.base else []), *flags.model]
    first, arrays = None, []
    for path in paths:
        model = load(path, progress=sys.stderr.isatty())
        first = model if first is None else first
        arrays.append(flatten(jax.device_get(merged(model.params))))
        merging.check_alike([arrays[0], arrays[-1]], [paths[0], path])
        if rows := different_fields(first.module, model.module):
            told = "; ".join(f"{key}: {ours!r} there, {theirs!r} here" for key, ours, theirs in rows)
            raise InputError(f"{path!r} is another architecture than {paths[0]!r} ({told})")
        if getattr(model.tokenizer, "fingerprint", None) != getattr(first.tokenizer, "fingerprint", None):
            raise InputError(f"{path!r} has another tokenizer than {paths[0]!r}: its ids stand for other texts")
        if model.state:
            raise InputError(f"{path!r} keeps {', '.join(model.state)} besides parameters, which is not merged")
    value = lambda name: DEFAULTS[name] if getattr(flags, name) is None else getattr(flags, name)
    if flags.method == "average":
        found = merging.average(arrays, flags.weight)
    elif flags.method == "task":
        found = merging.task_arithmetic(arrays[0], arrays[1:], flags.weight)
    elif flags.method == "slerp":
        found = merging.slerp(*arrays, value("t"), lambda name: "blocks" in name.split("/"))
    else:
        found = merging.ties(arrays[0], arrays[1:], flags.weight, value("density"), value("scale"))
    model = dataclasses.replace(first, params=jax.tree.map(jax.numpy.asarray, unflatten(found)))
    model.save(flags.output, format=flags.to)
    print(f"{len(flags.model)} models, merged by {flags.method}, are now in {flags.output}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
