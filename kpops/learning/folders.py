"""One training at a time in a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import gethostname

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
"""Of file systems on which nobody can be kept out, as on Windows."""


@contextmanager
def only_trainer(folder: Path) -> Iterator[str | None]:
    """Keep other trainings out of `folder` meanwhile; yields what keeps this one out, or None.

    The lock is the system's, on a file that is removed at the end. It goes with the process that
    holds it, so that one that was killed blocks nobody.
    """
    if fcntl is None:
        yield None
        return
    path = folder / LOCK
    try:
        descriptor, busy = _take(path)
    except OSError as error:
        yield f"cannot be written to or locked: {error}"
        return
    try:
        yield busy
    finally:
        if busy is None:
            with suppress(OSError):
                path.unlink()  # while others still cannot have it
        os.close(descriptor)


def _take(path: Path) -> tuple[int, str | None]:
    """Open the file, and lock it or say who has."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    os.truncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {gethostname()}".encode())
                    return descriptor, None
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            return descriptor, f"is being trained in by {holder}"
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in _NO_LOCKS:
                return descriptor, None
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed the file meanwhile
