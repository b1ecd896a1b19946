"""A bash that lives on between commands, so that what one sets or activates holds for the next."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

_POLL_S = 0.05
_GRACE_S = 20.0  # for processes that save before they end


class ShellSession:
    """bash without any start-up file, in a process group of its own; close() ends whatever is left of the group.

    Commands read nothing: their stdin is empty. What they print, both streams, goes to `log`.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], log: BinaryIO):
        # A parent that ignores Ctrl-C (a job in the background) would hand that on to all commands.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._reports, reports_in = os.pipe()
        self._reports_in = reports_in
        try:
            self._process = subprocess.Popen(
                ["bash", "--noprofile", "--norc"], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=log,
                stderr=subprocess.STDOUT, pass_fds=[reports_in], start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(reports_in)
            signal.signal(signal.SIGINT, handler)
        self._type("trap : INT")  # the shell outlives the Ctrl-C that ends a command

    def run(self, command: str, interrupt: Callable[[], bool] | None = None) -> int:
        """Exit code of the command; that of the shell if the command ended the shell.

        interrupt: asked again and again; the first time that it says True, the command gets what Ctrl-C sends.
        """
        # A descriptor of its own for the exit code: whatever the command prints is no report.
        self._type(f"{{\n{command}\n}} < /dev/null; echo $? >&{self._reports_in}")
        while not select.select([self._reports], [], [], _POLL_S)[0]:
            if interrupt and interrupt():
                os.killpg(self._process.pid, signal.SIGINT)
                interrupt = None
        report = os.read(self._reports, 16)
        return int(report) if report else self._process.wait()

    def close(self) -> None:
        """End the shell and its processes, first politely. Raises nothing when they have ended already."""
        self._process.stdin.close()
        self._signal_group(signal.SIGTERM)
        self._process.wait()
        end = time.monotonic() + _GRACE_S
        while self._signal_group(0) and time.monotonic() < end:  # the shell ends at once, what it has started may not
            time.sleep(_POLL_S)
        self._signal_group(signal.SIGKILL)
        os.close(self._reports)

    def _signal_group(self, number: int) -> bool:
        """Whether there was a process to send it to."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _type(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # a shell that has ended says so by its report
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
