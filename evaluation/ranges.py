"""The pc_range that vectors were made for, from where their points lie."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from data.gt_cache import range_name
from evaluation.vectors import Vectors
from utils.errors import UserError
from utils.frame import PC_RANGES

# Ground truth is cut to its range, and predictions of it seldom leave it: more of their points outside than this are
# of another range or in another frame.
MAX_OUTSIDE = 0.05


def require_range(path: str | os.PathLike, found: Sequence[float] | None, pc_range: Sequence[float]) -> None:
    """Raise UserError when a predictions file names another range (None: it names none) than that of the truth."""
    if found is not None and range_name(found) != range_name(pc_range):
        raise UserError(
            f"{path}: predicted for {range_name(found)} m, expected the {range_name(pc_range)} of the ground truth; "
            "give the two of one range"
        )


def lies_in(by_token: Mapping[str, Vectors], pc_range: Sequence[float], maybe_ego: bool = False) -> bool:
    """Whether (nearly) all points lie in pc_range, or, maybe_ego, in what that is in the ego frame."""
    places = [pc_range, seen_from_ego(pc_range)] if maybe_ego else [pc_range]
    return any(share_outside(by_token, place) <= MAX_OUTSIDE for place in places)


def share_outside(by_token: Mapping[str, Vectors], pc_range: Sequence[float], margin: float = 2.0) -> float:
    """Share of all points farther than `margin` metres outside pc_range."""
    low, high = np.array(pc_range[:2]) - margin, np.array(pc_range[3:5]) + margin
    total = outside = 0
    for vectors in by_token.values():
        if len(vectors):
            pts = np.concatenate(vectors.pts_m)
            total += len(pts)
            outside += int(np.any((pts < low) | (pts > high), axis=1).sum())
    return outside / max(total, 1)


def smallest_range(by_token: Mapping[str, Vectors], maybe_ego: bool = False) -> str | None:
    """The name in PC_RANGES of the smallest range in which the points lie, None when they lie in none."""
    by_length = sorted(PC_RANGES, key=lambda name: PC_RANGES[name][4])
    return next((name for name in by_length if lies_in(by_token, PC_RANGES[name], maybe_ego)), None)


def seen_from_ego(pc_range: Sequence[float]) -> tuple[float, ...]:
    """pc_range as it lies in the ego frame, x forward and y left; the LiDAR's place, under a metre off, left out."""
    x_min, y_min, z_min, x_max, y_max, z_max = pc_range
    return (y_min, -x_max, z_min, y_max, -x_min, z_max)
