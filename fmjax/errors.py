"""Errors whose message says it all: commands print it alone, without a traceback; and messages of others, shortened."""

import errno


class InputError(ValueError):
    """Bad usage, configuration or input; the message says what was found, what was expected and what to do.

    Commands exit with code 2.
    """


class ConfigError(InputError):
    """A key, value or name in a configuration is wrong."""


class DataError(InputError):
    """A data source cannot be read as asked; names the file and the record."""


class TokenizerError(InputError):
    """A tokenizer is missing, unreadable or does not fit its use."""


class CheckpointError(InputError):
    """A saved state is missing, damaged or does not fit the run."""


class RunError(RuntimeError):
    """What was asked for could not go on, for a reason outside it or in its numbers. Commands exit with code 1."""


_OUTSIDE = {
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT,
    errno.ECONNRESET, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO,
}  # fmt: skip


def is_unreachable(error: OSError) -> bool:
    """Whether a file could not be read for a reason outside it, which says nothing of its content and may pass."""
    return error.errno in _OUTSIDE


def first_line(error: BaseException, length: int = 300) -> str:
    """The first line of an error's message, its middle left out where it is long; its type where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    half = length // 2
    return lines[0] if len(lines[0]) <= length else f"{lines[0][:half]} ... {lines[0][-half:]}"
