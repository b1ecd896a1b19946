"""How a user's mistake reaches the user: one line, exit code 2."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from types import FrameType


class UserError(ValueError):
    """Something the user can mend; the message names the file, the value and the fix in one line."""


@contextlib.contextmanager
def naming_killed_workers(num_workers: int) -> Iterator[None]:
    """Around the use of a ProcessPoolExecutor of so many: a worker that was killed becomes a UserError."""
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(f"one of {num_workers} worker processes was killed, most often for lack of memory; "
                        "give fewer --num-workers") from error


def one_line(error: Exception, most: int = 160) -> str:
    """What an error says, without line breaks and with at most so many characters, to stand within a message."""
    return " ".join(str(error).split())[:most]


def run_cli(main: Callable[[], None]) -> None:
    """Run a command-line entry point; a UserError becomes one line on stderr and exit code 2.

    An interrupt and a reader of stdout that went away (`| head`) end it as they end other programs: by 128 + signal.
    SIGTERM, too, lets it take away what it has begun and end its worker processes, which would stay otherwise.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, partial(_interrupt, os.getpid()))
    try:
        main()
        sys.stdout.flush()  # so that a pipe that broke late is found here
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    except BrokenPipeError:
        # Python flushes stdout once more when it ends, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        # From a loader worker the message arrives below that worker's traceback, which ends with it.
        message = str(error).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(process: int, signum: int, frame: FrameType | None) -> None:
    """Of the program's process: raise KeyboardInterrupt. Forked workers, which inherit this handler, end at once."""
    if os.getpid() == process:
        raise KeyboardInterrupt(signum)
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
