"""Errors a user can mend. Commands print their message alone and exit with code 2."""


class InputError(ValueError):
    """Bad usage, configuration or input; the message says what was found, what was expected and what to do."""


class ConfigError(InputError):
    """A key, value or name in a configuration is wrong."""


class DataError(InputError):
    """A data source cannot be read as asked; names the file and the record."""


class TokenizerError(InputError):
    """A tokenizer is missing, unreadable or does not fit its use."""


class CheckpointError(InputError):
    """A saved state is missing, damaged or does not fit the run."""
