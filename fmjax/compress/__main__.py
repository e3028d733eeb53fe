"""Compress: `python -m fmjax.compress --model=MODEL --method=int8|int4|nf4|fp8|mxfp4|... --output=DIR [--OPTION=...]`.

A model in fewer bits, or with fewer numbers, which is a `--model` of every command. The options are those of the method
(`--method=NAME --help`); a method by its import path, `package.module:Class`, is one too. `--method=rotate+gptq` is one
after the other; an option goes to each of them that has it. Methods that go by what the model is given take
`--calibration=FILE --calibration_rows=N --calibration_length=T`. Nothing is at `--output` unless all of it is; a method
that goes block by block keeps those that are done beside it, in `OUTPUT.blocks`, and goes on from there when it is
started again after it was stopped.
"""

import argparse
import logging
import pathlib
import shutil
import sys
import time
import typing

from fmjax.commands import cli
from fmjax.commands.config_meanings import meanings
from fmjax.compress import METHODS
from fmjax.config_fields import field_types
from fmjax.config_values import FlagText, coerce
from fmjax.errors import InputError

ROWS, LENGTH = 128, 512


def parse(argv: list[str]):
    """(flags, the methods, in turn, with their options). Raises InputError for what is wrong with them."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method")
    name = first.parse_known_args(argv)[0].method
    plugins = [] if name is None else [METHODS.get(one) for one in name.split("+")]
    parser = cli.ArgumentParser(
        "python -m fmjax.compress", "A model in fewer bits, or with fewer numbers.",
        argument_default=argparse.SUPPRESS, formatter_class=argparse.HelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--model", required=True, help="workdir of a run, one of its checkpoints, a Hugging Face folder, or a hub id")
    methods = ", ".join(METHODS.table)
    add("--method", required=True, help=f"{methods}, or an import path; A+B: A, then B; with it --help lists its flags")
    add("--output", required=True, help="folder to be made")
    add("--mesh", type=cli.mesh, default=None, help="split the model over devices, such as fsdp:2,tensor:2")
    for plugin in plugins:
        METHODS.check(plugin)
    _add_options(parser, plugins)
    flags = parser.parse_args(argv)
    if needs_calibration(plugins) and "calibration" not in flags:
        raise InputError(f"--method={name} goes by what the model is given: give --calibration=FILE")
    methods = []
    for plugin in plugins:
        fields = field_types(plugin)
        given = {key: coerce(getattr(flags, key), fields[key][0], f"--{key}") for key in fields if key in flags}
        methods.append(plugin(**given))
    return flags, methods


def needs_calibration(plugins) -> bool:
    """Whether some of the methods go by what the model is given."""
    return any(plugin.needs_calibration for plugin in plugins)


def _add_options(parser: argparse.ArgumentParser, plugins: list[type]) -> None:
    seen = set()
    for plugin in plugins:
        told = meanings(plugin)
        for name, (annotation, default) in field_types(plugin).items():
            if name in seen:
                continue
            seen.add(name)
            several = typing.get_origin(annotation) is tuple
            options = {"action": "append"} if several else {}
            about = told.get(name, "").replace("%", "%%") + ("; repeatable" if several else "")
            parser.add_argument(f"--{name}", type=FlagText, help=f"{about} (default: {default!r})", **options)
    if needs_calibration(plugins):
        add, whole = parser.add_argument, cli.number(int, low=1)
        add("--calibration", help="a file of texts, a folder of what else the model reads, or FILE.npz with its inputs")
        add("--calibration_rows", type=whole, default=ROWS, help=f"how many (default: {ROWS})")
        add("--calibration_length", type=whole, default=LENGTH, help=f"tokens of a text (default: {LENGTH})")


def main(argv: list[str]) -> None:
    flags, methods = parse(argv)
    cli.log_to_stderr()
    logging.getLogger("fmjax.compress").setLevel(logging.INFO)  # how far it is

    import jax

    from fmjax.cache_folder import use_compilation_cache
    from fmjax.compress.calibration import read_calibration
    from fmjax.compress.report import told
    from fmjax.interop.exporter import check_new
    from fmjax.load import load

    check_new(flags.output)
    use_compilation_cache()
    progress = sys.stderr.isatty()
    model = load(flags.model, mesh=flags.mesh, progress=progress)
    calibration = None
    if needs_calibration(methods):
        calibration = read_calibration(flags.calibration, model, flags.calibration_rows, flags.calibration_length)
    began = time.perf_counter()
    blocks = pathlib.Path(flags.output).with_name(f"{pathlib.Path(flags.output).name}.blocks")
    made = model
    for number, method in enumerate(methods):
        kept = {"folder": blocks / str(number)} if getattr(method, "resumes", False) else {}
        made = method.compress(made, calibration, progress, **kept)
    jax.block_until_ready(made.params)
    seconds = time.perf_counter() - began
    made.save(flags.output)
    shutil.rmtree(blocks, ignore_errors=True)
    print(told(model, made))
    print(f"{seconds:.1f} s; now in {flags.output}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
