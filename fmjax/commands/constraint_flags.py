"""Flags of what a continuation is held to (`fmjax.inference.constraints`), for commands that generate."""

import pathlib
from typing import Any

from fmjax.errors import DataError, InputError

NAMES = ("json_schema", "regex", "choices", "grammar")


def add_flags(parser) -> None:
    """Adds --json_schema, --regex, --choices and --grammar."""
    add = parser.add_argument
    add("--json_schema", metavar="FILE", help="JSON that the schema in this file takes (pip install '.[constrained]')")
    add("--regex", help="a text that this regular expression matches as a whole (likewise)")
    add("--choices", help="one of these texts: yes,no; white space around a comma belongs to them (likewise)")
    add("--grammar", metavar="FILE", help="a text of the Lark grammar in this file (likewise)")


def check(flags) -> None:
    """Raises InputError for two of them, and for what does not go with one."""
    asked = [name for name in NAMES if name in flags]
    if len(asked) > 1:
        raise InputError(f"give one of --{asked[0]} and --{asked[1]}: a text is held to one of them")
    if asked and "num_beams" in flags:
        raise InputError(f"--{asked[0]} cannot be kept by beam search; leave --num_beams out")
    if asked and "stop" in flags:
        raise InputError(f"--stop would cut off what --{asked[0]} asks for; leave one of them out")


def given(flags) -> dict[str, Any]:
    """{"constraint": what is asked for}; {} where nothing is. Raises DataError for a file that cannot be read."""
    asked = [name for name in NAMES if name in flags]
    if not asked:
        return {}
    from fmjax.inference import constraints

    (name,) = asked
    value = getattr(flags, name)
    if name in ("json_schema", "grammar"):
        value = _read(name, value)
    make = {
        "json_schema": constraints.json_schema, "regex": constraints.regex, "grammar": constraints.lark,
        "choices": lambda text: constraints.choices(text.split(",")),
    }  # fmt: skip
    found = make[name](value)
    constraints.check(found)
    return {"constraint": found}


def _read(name: str, path: str) -> str:
    try:
        return pathlib.Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"--{name}={path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--{name}={path} is not UTF-8: {error}") from None
