"""What train_map_detection.py left in a run's folder: settings, figures by step and by validation, checkpoints."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.checkpoint_folder import checkpoints_in
from utils.errors import UserError
from utils.frame import CLASSES

_MAKER = "train_map_detection.py"


@dataclass(frozen=True)
class RunFolder:
    """One run, read; records are those of metrics.jsonl in the order of steps."""

    path: Path
    settings: dict  # config.json: args, model_config, classes, samples, started, commit, machine, ...
    train: list[dict]  # epoch, step, loss and its parts, lr, grad_norm, seconds_per_step
    val: list[dict]  # epoch, step and result as `evaluate` returns it; epoch 0 is the untrained model
    unreadable: list[int]  # numbers (from 1) of lines that are no whole record: a killed run leaves half of one
    superseded: int  # records whose steps a resumption took again

    @property
    def name(self) -> str:
        """The folder's name, also of `.` and of links."""
        return self.path.resolve().name

    def setting(self, name: str, default: object = None) -> object:
        """A flag of the run; default where it was not given or another version did not know it."""
        value = self.settings["args"].get(name)
        return default if value is None else value

    def validated_on(self) -> str | None:
        """The digest of the validation split's ground-truth cache; None where the run has not recorded it."""
        caches = self.settings.get("gt_caches")
        digest = caches.get("val") if isinstance(caches, dict) else None
        return digest if isinstance(digest, str) else None

    def best_val(self) -> dict | None:
        """The validation with the highest mAP, the first of equal ones; None before any that found ground truth.

        One on other ground truth than the run ends with, which a resumption may have changed, does not count.
        """
        scored = [record for record in self.val if record["result"]["mAP"] is not None
                  and record.get("gt_digest") in (None, self.validated_on())]  # fmt: skip
        return max(scored, key=lambda record: record["result"]["mAP"], default=None)

    def checkpoint(self) -> Path | None:
        """The best checkpoint, else the final one, else the latest; None where there is none."""
        latest_first = reversed(checkpoints_in(self.path))
        candidates = [self.path / "best_model.pth", self.path / "final_model.pth", *latest_first]
        return next((path for path in candidates if path.is_file()), None)


def read_run(folder: str | os.PathLike) -> RunFolder:
    """Read a run's folder. Raises UserError when it is none, or holds no figures yet."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the output folder of a run of {_MAKER}")
    settings = _read_settings(folder / "config.json")
    train, val, unreadable, superseded = _read_metrics(folder / "metrics.jsonl")
    return RunFolder(folder, settings, train, val, unreadable, superseded)


def series_of(records: list[dict], name: str) -> np.ndarray:
    """One figure of all records [N] float64, NaN where it is absent or was not finite."""
    return np.array([number(record.get(name)) for record in records], np.float64)


def number(value: object) -> float:
    """A number from a file as float, NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.nan


def _read_settings(path: Path) -> dict:
    text = _read_text(path)
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}), expected the settings of {_MAKER}; restore it") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("args"), dict):
        raise UserError(f'{path}: no "args", expected the settings of {_MAKER}; give the folder of a run')
    return settings


def _read_metrics(path: Path) -> tuple[list[dict], list[dict], list[int], int]:
    """Training and validation records, numbers of unreadable lines, count of superseded records."""
    train: list[dict] = []
    val: list[dict] = []
    unreadable, superseded = [], 0
    lines = _read_text(path).removesuffix("\n").split("\n")  # not splitlines, which splits within strings
    for line_number, line in enumerate(lines, start=1):
        record = _parse_record(line)
        if record is None:
            unreadable.append(line_number)
            continue
        if record["kind"] not in ("train", "val"):
            continue
        # A resumption goes back to its checkpoint's place: what came after it happened in a run that was given up. The
        # epoch comes first, because steps are counted anew where a resumption changes the global batch.
        place, validates = (record["epoch"], record["step"]), record["kind"] == "val"
        while train and (_place(train[-1]) > place or _place(train[-1]) == place and not validates):
            train.pop()
            superseded += 1
        while val and val[-1]["epoch"] >= record["epoch"]:
            val.pop()
            superseded += 1
        (val if validates else train).append(record)
    if not train and not val:
        raise UserError(
            f"{path}: no whole record, expected those of {_MAKER}; "
            "wait for its first log line or give the folder of another run"
        )
    return train, val, unreadable, superseded


def _place(record: dict) -> tuple[float, float]:
    return record["epoch"], record["step"]


def _parse_record(line: str) -> dict | None:
    """A line of metrics.jsonl, None when it is not a whole record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    if record["kind"] in ("train", "val") and not all(math.isfinite(number(record.get(n))) for n in ("epoch", "step")):
        return None
    if record["kind"] == "val" and not _is_result(record.get("result")):
        return None
    return record


def _is_result(result: object) -> bool:
    """Whether this has the form of what `evaluate` returns."""
    if not isinstance(result, dict) or "mAP" not in result:
        return False
    if result["mAP"] is not None and not math.isfinite(number(result["mAP"])):  # null: no ground truth in the split
        return False
    thresholds, details = result.get("thresholds"), result.get("details")
    if not isinstance(thresholds, list) or not thresholds or not isinstance(details, dict):
        return False
    if not all(math.isfinite(number(threshold)) for threshold in thresholds):
        return False
    return all(isinstance(part.get(name), dict) for part in (result, details) for name in CLASSES)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}, expected a file that {_MAKER} writes; give the folder of a run"
        ) from None
