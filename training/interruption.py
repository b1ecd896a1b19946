"""A wish to end from outside (preemption, Ctrl-C, a closed terminal), which the run grants between two steps."""

import multiprocessing
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(Exception):
    """The run was asked to end; signum says by which signal."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that a signal has ended: 143 for SIGTERM, 130 for SIGINT, 129 for SIGHUP."""
        return 128 + self.signum


class SignalWatch:
    """`with SignalWatch() as watch:` remembers the first of SIGNALS that arrives; in the main thread of the process.

    Later ones change nothing: a launcher often passes on what the process has already got itself. SIGKILL ends at once.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "SignalWatch":
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in self._before.items():
            if handler != signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum


def ignore_signals(worker: int) -> None:
    """Of a loader's worker process: a signal to the whole group must not end it before the step is done.

    The worker ends with the process that it works for, which has to call end_workers.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """End this process's workers. Python would send them SIGTERM as it ends, which they ignore, and wait for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the loader's handler would report their death as an accident
    for worker in multiprocessing.active_children():
        worker.kill()
