"""Errors whose message says it all: commands print it alone, without a traceback."""


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
