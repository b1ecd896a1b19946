"""Polylines as numpy arrays [N, 2]: closed or not, length, resampling, clipping. Empty input gives empty output."""

from collections.abc import Sequence

import numpy as np


def is_closed(pts: np.ndarray) -> bool:
    """A ring repeats its first point and has at least three distinct vertices."""
    return len(pts) >= 4 and bool(np.all(pts[0] == pts[-1]))


def resample_lines(lines: Sequence[np.ndarray], num_points: int) -> np.ndarray:
    """Resample N polylines [n_i, 2] to [N, num_points, 2] float64 at equal arc length, ends included.

    A line of zero length becomes copies of its point; every line needs at least one point.
    """
    if len(lines) == 0:
        return np.zeros((0, num_points, 2))
    pts = np.concatenate(lines).astype(np.float64)  # [M, 2]
    counts = np.array([len(line) for line in lines])
    first = np.cumsum(counts) - counts  # [N]
    last = first + counts - 1  # [N]
    steps = np.hypot(*np.diff(pts, axis=0).T)  # [M-1]
    steps[last[:-1]] = 0.0  # the jump from one line to the next is no length
    arc = np.concatenate([[0.0], np.cumsum(steps)])  # [M]
    length = arc[last] - arc[first]
    at = arc[first][:, None] + np.linspace(0.0, 1.0, num_points) * length[:, None]  # [N, num_points]

    left = np.searchsorted(arc, at, side="right") - 1
    left = np.clip(left, first[:, None], np.maximum(last - 1, first)[:, None])
    right = np.minimum(left + 1, last[:, None])
    span = arc[right] - arc[left]
    share = np.divide(at - arc[left], span, out=np.zeros_like(at), where=span > 0)
    return pts[left] + np.clip(share, 0.0, 1.0)[..., None] * (pts[right] - pts[left])


def line_length(pts: np.ndarray) -> float:
    """Length of a polyline [N, 2]."""
    return float(np.linalg.norm(np.diff(pts, axis=0), axis=1).sum())


def clip_line(pts: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    """The pieces [n, 2] of a polyline [N, 2] inside the box low [2] .. high [2], in the line's order.

    A ring that lies inside stays one closed ring; a ring that is cut becomes open pieces, none of them broken
    where the ring happens to start. A line that only touches the box gives nothing (Liang and Barsky, 1984).
    """
    if len(pts) < 2:
        return []
    if np.all((pts >= low) & (pts <= high)):
        return [pts]
    start, step = pts[:-1], np.diff(pts, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.stack([(low - start) / step, (high - start) / step])  # [2, N-1, 2]
    along = step == 0  # parallel to an axis: inside its slab all the way or not at all
    within = (start >= low) & (start <= high)
    enter = np.where(along, np.where(within, 0.0, 2.0), at.min(axis=0)).max(axis=1).clip(min=0.0)
    leave = np.where(along, 1.0, at.max(axis=0)).min(axis=1).clip(max=1.0)
    pieces: list[list[np.ndarray]] = []
    previous = -2  # last segment whose end lies inside
    for k in np.flatnonzero(enter < leave):
        if enter[k] > 0.0 or previous != k - 1:
            pieces.append([start[k] + enter[k] * step[k]])
        pieces[-1].append(pts[k + 1] if leave[k] == 1.0 else start[k] + leave[k] * step[k])
        previous = k if leave[k] == 1.0 else -2
    starts_inside = len(pieces) > 0 and enter[0] == 0.0 and leave[0] > 0.0
    if is_closed(pts) and len(pieces) > 1 and starts_inside and previous == len(step) - 1:
        pieces[0] = pieces.pop() + pieces[0][1:]
    return [np.array(piece, pts.dtype) for piece in pieces]
