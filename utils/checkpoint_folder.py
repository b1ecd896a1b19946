"""The checkpoints in a run's folder: their names, their order, the newest good one, the removal of old ones.

checkpoint_epoch_N.pth         epoch N, counted from 1, is finished
checkpoint_epoch_N_step_S.pth  in epoch N, after its S-th optimizer step

The order is read from the names alone: clocks jump, and copies get new times. best_model.pth and final_model.pth are
not part of it. Whoever changes a folder here holds its RunLock.
"""

import logging
import math
import os
import re
from pathlib import Path

from utils.checkpoint import load_checkpoint
from utils.errors import UserError

_NAME = re.compile(r"checkpoint_epoch_([1-9][0-9]*)(?:_step_(0|[1-9][0-9]*))?\.pth")
_TEMPORARY = re.compile(r"\.(?:checkpoint_.+|best_model|final_model)\.pth\.([1-9][0-9]*)\.tmp")  # see `replacing`
_log = logging.getLogger(__name__)


def checkpoint_name(epoch: int, steps_done: int, steps_per_epoch: int) -> str:
    """The file name after steps_done of the steps_per_epoch optimizer steps of an epoch, which is counted from 1."""
    if epoch < 1 or not 0 <= steps_done <= steps_per_epoch:
        raise ValueError(f"epoch {epoch}, {steps_done} of {steps_per_epoch} steps: no such place in a run")
    return f"checkpoint_epoch_{epoch}{'' if steps_done == steps_per_epoch else f'_step_{steps_done}'}.pth"


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; none where there is no such folder."""
    found = [(_place(path.name), path) for path in Path(folder).glob("checkpoint_epoch_*.pth") if path.is_file()]
    return [path for place, path in sorted(each for each in found if each[0])]


def newest_good(folder: str | Path) -> tuple[Path, dict] | None:
    """The newest checkpoint that loads with its digest, and its content; None where there is no checkpoint at all.

    Each one passed over is logged as a warning. Raises UserError when there are some and none loads: to begin anew in
    their place is not for a program to decide.
    """
    failures = []
    for path in reversed(checkpoints_in(folder)):
        try:
            checkpoint = load_checkpoint(path)
        except UserError as error:
            _log.warning("%s", error)
            failures.append(error)
        else:
            return path, checkpoint
    if failures:
        raise UserError(
            f"{folder}: none of its {len(failures)} checkpoints can be used, the newest: {failures[0]}; "
            "choose another --output-dir to begin anew"
        )
    return None


def set_aside_later(checkpoint: Path) -> list[Path]:
    """Rename the checkpoints of its folder that come after this one to NAME.set_aside; returns their new places.

    A run that goes on from it leaves behind what came later, be it damaged or another course of the training. Under
    their old names the next `newest_good` would return there, and `remove_old` would count them as the newest.
    The checkpoint has a name as checkpoint_name makes it; the file need not be there. Raises UserError when one
    cannot be renamed.
    """
    place = _place(checkpoint.name)
    if place is None:
        raise ValueError(f"{checkpoint}: the name says no place in the run")
    moved = []
    for path in checkpoints_in(checkpoint.parent):
        if _place(path.name) > place:
            moved.append(path.with_name(f"{path.name}.set_aside"))
            try:
                os.replace(path, moved[-1])
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be renamed ({error.strerror}), but comes after {checkpoint.name}, from which the "
                    "run goes on; move it away"
                ) from error
    return moved


def remove_old(folder: str | Path, keep_last: int) -> None:
    """Delete all checkpoints but the newest keep_last (0 keeps all), and what killed processes left half-written.

    Call it between two saves. What cannot be deleted is logged as a warning.
    """
    old = checkpoints_in(folder)[:-keep_last] if keep_last else []
    for path in [*old, *_abandoned(folder)]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: cannot be deleted (%s); it takes up space until you do", path, error.strerror)


def _place(name: str) -> tuple[int, float] | None:
    """Epoch and step of a checkpoint's name, by which they are ordered; None for any other name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), math.inf if match[2] is None else int(match[2])) if match else None


def _abandoned(folder: str | Path) -> list[Path]:
    """Temporary files of saves that nobody will finish.

    One with this process's own id is from an earlier process of that id, as after a container's restart.
    """
    found = []
    for path in Path(folder).glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not _is_alive(int(match[1]))):
            found.append(path)
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
