"""What a run says: lines on the terminal and in train.log, numbers in metrics.jsonl."""

import contextlib
import errno
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError
from utils.files import replacing, without_nan


def drop_later_records(folder: Path, num_records: int) -> int:
    """Leave the first num_records of a run's metrics.jsonl, whole lines only; returns how many there are.

    Those that a run has written after its last checkpoint will come again. Raises UserError when it cannot be written.
    """
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith(b"\n")][:num_records]
    if kept != lines:
        with replacing(path) as file:
            file.writelines(kept)
    return len(kept)


class RunLog:
    """Lines go to standard output and to <folder>/train.log, records to <folder>/metrics.jsonl and TensorBoard.

    folder None: nothing goes anywhere, as on ranks that are not the main one. num_records: those that metrics.jsonl
    holds already; step: the last one they speak of. What cannot be written is lost and the run goes on.
    """

    def __init__(self, folder: Path | None, num_records: int = 0, tensorboard: bool = False, step: int = 0):
        """Raises UserError when TensorBoard is wanted and not installed."""
        self.folder = folder
        self.num_records = num_records
        self._has_lost = False
        self._board = _open_board(folder, step) if tensorboard and folder else None
        if folder:
            self.text_path, self.metrics_path = folder / "train.log", folder / "metrics.jsonl"

    def line(self, text: str) -> None:
        """Print one line without breaking a progress bar."""
        if not self.folder:
            return
        try:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # a closed terminal, a full disk behind `>`; what is buffered would fail again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        self._append(self.text_path, text)

    def record(self, **values: object) -> None:
        """Append one JSON object; what is not finite becomes null. For TensorBoard it needs a kind and a step."""
        if not self.folder:
            return
        self.num_records += self._append(self.metrics_path, json.dumps(without_nan(values)))
        if not self._board:
            return
        try:
            for name, value in _scalars(values):
                self._board.add_scalar(f"{values['kind']}/{name}", value, values["step"])
            self._board.flush()
        except OSError as error:
            self._warn(f"TensorBoard: cannot be written ({error.strerror or error}), it gets nothing more")
            self._board = None

    def _append(self, path: Path, text: str) -> bool:
        """Add a whole line or nothing; False when there is no space for it, which must not cost the run."""
        line = (text + "\n").encode()
        try:
            with open(path, "ab", buffering=0) as file:
                size = file.tell()
                if file.write(line) < len(line):
                    file.truncate(size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._has_lost:
                self._warn(f"{path}: cannot be written ({error.strerror}), lines are lost")
            self._has_lost = True
            return False
        return True

    def _warn(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(f"warning: {text}", file=sys.stderr)


def _scalars(values: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield prefix + name, value


def _open_board(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(f"--tensorboard: {error}; pip install tensorboard, or leave the flag out") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)  # later steps come again


@contextlib.contextmanager
def collected_messages(*names: str) -> Iterator[list[str]]:
    """What the named loggers say in the block, from INFO on, for whoever has no log to write to yet."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield messages
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def progress_bar(total: int, description: str, done: int = 0) -> tqdm:
    """A bar on a terminal, of the first rank alone; silence elsewhere (the log lines say enough there)."""
    shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"  # torchrun's ranks share its terminal
    return tqdm(total=total, initial=done, desc=description, disable=not shown, leave=False, dynamic_ncols=True)
