"""Telling a full disk from other failures, whichever library met it."""

import errno

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")


def disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, says that a disk, a quota or a file-size limit is exhausted.

    Orbax and TensorStore report it in their message, in the words of the system's error.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            return True
        if any(word in str(error) for word in _WORDS):
            return True
        error = error.__cause__
    return False
