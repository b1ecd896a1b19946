"""What a run says: lines on the terminal and in train.log, numbers in metrics.jsonl."""

import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm


class RunLog:
    """Lines go to standard output and to <folder>/train.log, records to <folder>/metrics.jsonl."""

    def __init__(self, folder: Path):
        self.text_path = folder / "train.log"
        self.metrics_path = folder / "metrics.jsonl"

    def line(self, text: str) -> None:
        """Print one line without breaking a progress bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        with open(self.text_path, "a") as file:
            file.write(text + "\n")

    def record(self, **values: object) -> None:
        """Append one JSON object; what is not finite becomes null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with open(self.metrics_path, "a") as file:
            file.write(json.dumps(clean) + "\n")


@contextlib.contextmanager
def collected_messages(logger: logging.Logger) -> Iterator[list[str]]:
    """The logger's messages of the block, from INFO on, for whoever has no log to write to yet."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def progress_bar(total: int, description: str) -> tqdm:
    """A bar on a terminal, silence elsewhere (the log lines say enough there)."""
    return tqdm(total=total, desc=description, disable=not sys.stderr.isatty(), leave=False,
                dynamic_ncols=True)
