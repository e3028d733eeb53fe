"""What every command shares: flags as promised, errors as one message, exit codes.

A command is a function `main(argv) -> int | None` and ends with

    if __name__ == "__main__":
        sys.exit(cli.run(main))

Exit codes: 0 done; 2 bad usage, configuration or input (one message on stderr, no traceback);
130 interrupted from the keyboard; 1 what could not go on, with a message, or a fault, with its traceback.
"""

import argparse
import logging
import math
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fmjax import cpu
from fmjax.errors import DataError, InputError, RunError
from fmjax.registry import nearest


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations, raising InputError where argparse would print its usage and exit.

    `--flag=value` and `--flag value` are both accepted. An unknown flag is an error naming the nearest known one;
    a command with open-ended flags (`--config.a.b=value`) calls `parse_known_args` and checks the rest itself.
    """

    def __init__(self, prog: str, description: str, **kwargs):
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(prog=prog, description=description, allow_abbrev=False, **kwargs)

    def flags(self) -> list[str]:
        """Every flag this parser knows, `--help` included."""
        return [option for action in self._actions for option in action.option_strings]

    def parse_args(self, args=None, namespace=None):
        # argparse reports a missing required flag before an unknown one, so that `--promt=x` would be answered by
        # "--prompt is required": look at the names first, where the nearest one can be given.
        arguments = list(sys.argv[1:] if args is None else args)
        known = self.flags()
        for argument in arguments:
            flag = argument.partition("=")[0]
            if flag == "--":
                break
            if flag.startswith("--") and flag not in known:
                hint = nearest(flag, known, cutoff=0.7)
                if hint == "." and CONFIG_HELP in known:
                    hint = "; a key of the config is replaced by --config.KEY=VALUE, such as --config.train.steps=6."
                raise InputError(f"unknown flag {flag!r}{hint} Known: {', '.join(known)}")
        namespace, rest = super().parse_known_args(arguments, namespace)
        if rest:
            raise InputError(f"unexpected argument {rest[0]!r}: every argument is a flag (--name=value)")
        return namespace

    def error(self, message: str):
        raise InputError(f"{message} ({self.prog} --help lists the flags)")


CONFIG_HELP = "--config.help"
"""A flag, where all others that begin so replace keys of the config."""


def split_overrides(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(what `--config.a.b=value` replaces, the other arguments). Raises InputError for one without a value."""
    overrides, rest = {}, []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--config.") or argument == CONFIG_HELP:
            rest.append(argument)
            continue
        flag, equals, value = argument.partition("=")
        if not equals:
            if not arguments or arguments[0].startswith("--"):
                raise InputError(f"{flag} needs a value: {flag}=VALUE")
            value = arguments.pop(0)
        overrides[flag.removeprefix("--config.")] = value
    return overrides, rest


def mesh(text: str) -> dict[str, int]:
    """A parser of flag values: "fsdp:2,tensor:2", the sizes of mesh axes (`fmjax.parallel.mesh.MeshConfig`)."""
    try:
        pairs = [part.replace("=", ":").split(":") for part in text.split(",")]
        return {axis.strip(): int(size) for axis, size in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected AXIS:SIZE,..., such as fsdp:2,tensor:2, got {text!r}") from None


def number(kind: type, *, low: float = -math.inf, high: float = math.inf, exclude_low: bool = False) -> Callable:
    """A parser of flag values: an `int` or `float` inside [low, high], or (low, high] with `exclude_low`."""
    name = "an integer" if kind is int else "a number"

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {name}, got {text!r}") from None
        if not (low < value if exclude_low else low <= value) or not value <= high:
            bounds = f" {'above' if exclude_low else 'at least'} {low:g}" if low > -math.inf else ""
            bounds += f"{' and' if bounds else ''} at most {high:g}" if high < math.inf else ""
            raise argparse.ArgumentTypeError(f"expected {name}{bounds}, got {text!r}")
        return value

    return parse


def new_output(text: str) -> pathlib.Path:
    """Where --output is to lie. Raises DataError where something lies there, or the folder for it does not exist."""
    output = pathlib.Path(text).expanduser()
    if output.exists():
        raise DataError(f"{output} is there already; choose another name")
    if not output.parent.is_dir():
        raise DataError(f"--output={str(output)!r}: the folder {str(output.parent)!r} does not exist")
    return output


def log_to_stderr() -> None:
    """Warnings of fmjax, bare, on stderr; of libraries only errors."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR, stream=sys.stderr)
    logging.getLogger("fmjax").setLevel(logging.WARNING)


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs `main` on `argv` (`sys.argv[1:]` when None) and returns the exit code.

    An InputError becomes its message alone on stderr and exit code 2, a RunError the same with code 1; faults propagate
    with their traceback.
    """
    cpu.order_collectives()
    try:
        code = main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code or 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left (`| head`). What is still buffered has nowhere to go; without this, the
        # interpreter complains about it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def leave(code: int) -> NoReturn:
    """Ends the process as `sys.exit` does, for a command that compiles.

    After an interrupt in the middle of a compilation the interpreter may crash when it tears itself down (seen with JAX
    0.10 on a CPU): after an interrupt it is left at once.
    """
    if code == 130:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
