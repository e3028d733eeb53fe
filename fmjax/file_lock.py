"""Locks on open files, which go with the process that holds them, however it ends."""

import logging

try:
    import fcntl
except ImportError:  # a system without it, such as Windows
    fcntl = None

log = logging.getLogger("fmjax")


def take(file, name, wait: bool = False) -> bool:
    """Locks an open file until it is closed; False where another holds it.

    Where the system or its file system has no locks, that is logged and nothing is held.

    Args:
      name: what is locked, for the log.
      wait: until another lets go of it; without locks the two then do the same work, which is no cause for a warning.
    """
    level = logging.INFO if wait else logging.WARNING
    if fcntl is None:
        log.log(level, "this system has no file locks: nothing keeps a second run out of %s", name)
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.log(level, "%s cannot be locked (%s): nothing keeps a second run out of it", name, error.strerror)
    return True
