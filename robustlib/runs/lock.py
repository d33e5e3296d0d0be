"""Locks on files that die with the processes that hold them. Where a file system knows no locks, none counts as held."""

import errno
import fcntl
import time
from pathlib import Path
from typing import IO, Any

HELD = (errno.EWOULDBLOCK, errno.EACCES)
UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # what file systems without locks answer
BLINK = 0.1  # seconds between two tries


def take(file: IO[Any], patience: float = 0.0) -> bool:
    """Whether the lock on an open file was free, or became so within `patience` seconds; it is kept until the file is closed.

    Processes that inherit the file hold it too. True as well where the file system has no locks; other errors are raised (OSError).
    """
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNKNOWN:
                return True
            if error.errno not in HELD:
                raise
        else:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(BLINK)


def held(path: Path) -> bool | None:
    """Whether a process holds the lock on a file; None where the file system knows no locks."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return None if error.errno in UNKNOWN else True
    return False
