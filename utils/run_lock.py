"""A lock on a run's folder, so that two live runs never write into the same one."""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

from utils.errors import UserError

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_log = logging.getLogger(__name__)


class RunLock:
    """`with RunLock(folder):` holds FOLDER/run.lock; raises UserError, naming the holder, when another process does.

    The kernel releases it however the process ends. The file stays, since removing it would let two processes lock
    two files of that name; what it says counts only while it is locked. Where the file system knows no locks, a
    warning is logged and the block runs without.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / "run.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._lock()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on host {socket.gethostname()}".encode(), 0)
        except OSError as error:
            self._close()
            raise UserError(f"{self.path}: cannot be locked ({error.strerror}); choose another --output-dir") from error
        # A forked loader worker outlives a killed run by seconds; its copy would keep the lock.
        os.register_at_fork(after_in_child=self._close)
        return self

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 300, 0).decode(errors="replace")
            self._close()
            raise UserError(
                f"{self.folder}: in use by {' '.join(holder.split()) or 'another process'}; "
                "wait for it to end or choose another --output-dir"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning("%s: cannot be locked (%s), let no other run use the folder", self.path, error.strerror)

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
