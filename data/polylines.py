"""Polylines as numpy arrays [N, 2]: closed or not, length, resampling, clipping. Empty input gives empty output."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

CORNER_DEG = 30.0  # a line that turns by more at a vertex has a corner there; less is a bend
M_PER_RAD = 8.0  # metres that a radian of a bend counts for when points are dealt out
PER_M_AWAY = 0.01  # share by which a piece counts for less for each metre that it lies away from the origin


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


def target_points(lines: Sequence[np.ndarray], num_points: int) -> np.ndarray:
    """N polylines [n_i, 2], metres around the car, as [N, num_points, 2] float64 that keep their shape.

    That is what a network is to predict. Ends and corners (turns of more than CORNER_DEG) are points, a ring begins at
    its first corner. The other points divide the pieces between them, the longest first, and lie closer together in
    bends: as if a radian were M_PER_RAD longer. At equal arc length, as in MapTR, ten points of a crossing cut its
    corners by 0.5 m and more. Where there are more corners than points, the least are left out.
    """
    return np.array([_with_corners(np.asarray(line, np.float64), num_points) for line in lines]).reshape(
        len(lines), num_points, 2
    )


def _with_corners(line: np.ndarray, num_points: int) -> np.ndarray:
    line = line[np.append(True, np.any(np.diff(line, axis=0) != 0, axis=1))]
    if len(line) < 2:
        return np.repeat(line[:1], num_points, axis=0)
    turn = _turns(line)
    corner = turn > np.deg2rad(CORNER_DEG)
    if is_closed(line) and corner.any():
        start = int(corner.argmax())
        line, turn, corner = (np.concatenate([each[start:-1], each[: start + 1]]) for each in (line, turn, corner))
    corner[[0, -1]] = True
    anchors = np.flatnonzero(corner).tolist()
    while len(anchors) > num_points:
        a, b, c = (line[anchors[k : len(anchors) - 2 + k]] for k in range(3))
        area = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
        del anchors[int(area.argmin()) + 1]
    bend = np.where(corner, 0.0, turn) * M_PER_RAD / 2  # half of it on either side
    along = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1) + bend[:-1] + bend[1:]))  # [n]
    # Opposite sides of a crossing are as long: the nearer one gets the odd point, wherever the ring has begun.
    middle = (line[anchors[:-1]] + line[anchors[1:]]) / 2
    length = np.diff(along[anchors]) / (1 + PER_M_AWAY * np.hypot(*middle.T))
    edges = np.ones(len(length), np.int64)
    for _ in range(num_points - len(anchors)):
        edges[(length / edges).argmax()] += 1
    at = [along[first] + np.arange(count) / count * (along[last] - along[first])
          for (first, last), count in zip(pairwise(anchors), edges.tolist(), strict=True)]
    at = np.append(np.concatenate(at), along[-1])
    return np.stack([np.interp(at, along, line[:, axis]) for axis in (0, 1)], axis=1)


def _turns(line: np.ndarray) -> np.ndarray:
    """Radians [n] by which a polyline [n, 2] turns at its vertices; 0 at its ends, of a ring the turn there."""
    step = np.diff(line, axis=0)
    before, after = np.roll(step, 1, axis=0), step
    turn = np.abs(np.arctan2(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0], (before * after).sum(axis=1)))
    turn[0] *= is_closed(line)
    return np.append(turn, turn[0])


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
