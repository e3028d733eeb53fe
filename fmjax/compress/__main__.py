"""Compress: `python -m fmjax.compress --model=MODEL --method=int8|int4|nf4|fp8|mxfp4|... --output=DIR [--OPTION=...]`.

A model in fewer bits, or with fewer numbers, which is a `--model` of every command. The options are those of the method
(`--method=NAME --help`); a method by its import path, `package.module:Class`, is one too. Methods that go by what the
model is given take `--calibration=FILE --calibration_rows=N --calibration_length=T`. Nothing is at `--output` unless
all of it is.
"""

import argparse
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
    """(flags, the method with its options). Raises InputError for what is wrong with them."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method")
    name = first.parse_known_args(argv)[0].method
    plugin = None if name is None else METHODS.get(name)
    parser = cli.ArgumentParser(
        "python -m fmjax.compress", "A model in fewer bits, or with fewer numbers.",
        argument_default=argparse.SUPPRESS, formatter_class=argparse.HelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--model", required=True, help="workdir of a run, one of its checkpoints, a Hugging Face folder, or a hub id")
    methods = ", ".join(METHODS.table)
    add("--method", required=True, help=f"{methods}, or an import path; with it --help lists its flags")
    add("--output", required=True, help="folder to be made")
    add("--mesh", type=cli.mesh, default=None, help="split the model over devices, such as fsdp:2,tensor:2")
    if plugin is not None:
        METHODS.check(plugin)
        _add_options(parser, plugin)
    flags = parser.parse_args(argv)
    needs = plugin.needs_calibration
    if needs and "calibration" not in flags:
        raise InputError(f"--method={name} goes by what the model is given: give --calibration=FILE")
    fields = field_types(plugin)
    given = {key: coerce(getattr(flags, key), fields[key][0], f"--{key}") for key in fields if key in flags}
    return flags, plugin(**given)


def _add_options(parser: argparse.ArgumentParser, plugin: type) -> None:
    told = meanings(plugin)
    for name, (annotation, default) in field_types(plugin).items():
        several = typing.get_origin(annotation) is tuple
        options = {"action": "append"} if several else {}
        about = told.get(name, "").replace("%", "%%") + ("; repeatable" if several else "")
        parser.add_argument(f"--{name}", type=FlagText, help=f"{about} (default: {default!r})", **options)
    if plugin.needs_calibration:
        add, whole = parser.add_argument, cli.number(int, low=1)
        add("--calibration", help="a file of texts, a folder of what else the model reads, or FILE.npz with its inputs")
        add("--calibration_rows", type=whole, default=ROWS, help=f"how many (default: {ROWS})")
        add("--calibration_length", type=whole, default=LENGTH, help=f"tokens of a text (default: {LENGTH})")


def main(argv: list[str]) -> None:
    flags, method = parse(argv)
    cli.log_to_stderr()

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
    if method.needs_calibration:
        calibration = read_calibration(flags.calibration, model, flags.calibration_rows, flags.calibration_length)
    began = time.perf_counter()
    made = method.compress(model, calibration, progress)
    jax.block_until_ready(made.params)
    seconds = time.perf_counter() - began
    made.save(flags.output)
    print(told(model, made))
    print(f"{seconds:.1f} s; now in {flags.output}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
