"""Plane curves: rounded polylines, arc length, offsets, Bezier pieces. Metres, x-y plane."""

import numpy as np

CURVE_STEP = 0.25  # metres between the points that represent a smooth curve


def arc_length(pts: np.ndarray) -> np.ndarray:
    """Distance along a polyline [N, 2] at each of its points [N], in metres."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(pts, axis=0), axis=1))])


def resample_by_step(pts: np.ndarray, step: float) -> np.ndarray:
    """Points about `step` metres apart along a polyline [N, 2], both ends kept."""
    arc = arc_length(pts)
    at = np.linspace(0.0, arc[-1], max(2, int(round(arc[-1] / step)) + 1))
    return np.stack([np.interp(at, arc, pts[:, 0]), np.interp(at, arc, pts[:, 1])], axis=1)


def quadratic_bezier(start: np.ndarray, control: np.ndarray, end: np.ndarray, num_points: int) -> np.ndarray:
    """Points [num_points, 2] of a quadratic Bezier curve, ends included."""
    t = np.linspace(0.0, 1.0, num_points)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def cubic_connection(start: np.ndarray, start_dir: np.ndarray, end: np.ndarray, end_dir: np.ndarray) -> np.ndarray:
    """A smooth curve [N, 2] that leaves `start` along start_dir and reaches `end` along end_dir."""
    handle = 0.39 * np.linalg.norm(end - start)
    t = np.linspace(0.0, 1.0, 33)[:, None]
    first, second = start + handle * start_dir, end - handle * end_dir
    return (1 - t) ** 3 * start + 3 * t * (1 - t) ** 2 * first + 3 * t**2 * (1 - t) * second + t**3 * end


def round_corners(control: np.ndarray, straight_ends: float) -> np.ndarray:
    """Round the inner corners of a control polyline [K, 2] with Bezier pieces; points CURVE_STEP apart.

    The first and last `straight_ends` metres stay straight where the segments are long enough.
    """
    lengths = np.linalg.norm(np.diff(control, axis=0), axis=1)
    pieces = [control[:1]]
    for i in range(1, len(control) - 1):
        before = lengths[i - 1] - straight_ends if i == 1 else 0.49 * lengths[i - 1]
        after = lengths[i] - straight_ends if i == len(control) - 2 else 0.49 * lengths[i]
        reach = max(1.0, min(before, after))
        enter = control[i] + reach * (control[i - 1] - control[i]) / lengths[i - 1]
        leave = control[i] + reach * (control[i + 1] - control[i]) / lengths[i]
        pieces.append(quadratic_bezier(enter, control[i], leave, 200))
    pieces.append(control[-1:])
    return resample_by_step(np.concatenate(pieces), CURVE_STEP)


def headings(pts: np.ndarray) -> np.ndarray:
    """Unwrapped heading in radians [N] along a polyline [N, 2]."""
    step = np.gradient(pts, axis=0)
    return np.unwrap(np.arctan2(step[:, 1], step[:, 0]))


class Curve:
    """A smooth curve with positions addressed as (s along it, d to its left), in metres."""

    def __init__(self, pts: np.ndarray):
        self.pts = pts
        self.arc = arc_length(pts)
        self.heading = headings(pts)
        self.length = float(self.arc[-1])

    def at(self, s: np.ndarray, d: np.ndarray | float) -> np.ndarray:
        """Points [..., 2] at s [...] metres along and d [...] metres to the left."""
        s = np.asarray(s, np.float64)
        heading = np.interp(s, self.arc, self.heading)
        x = np.interp(s, self.arc, self.pts[:, 0]) - d * np.sin(heading)
        y = np.interp(s, self.arc, self.pts[:, 1]) + d * np.cos(heading)
        return np.stack([x, y], axis=-1)

    def smallest_radius(self) -> float:
        """The smallest radius of curvature in metres."""
        turn = np.abs(np.diff(self.heading)) / np.maximum(np.diff(self.arc), 1e-9)
        return float(1.0 / max(turn.max(), 1e-9))

    def stations(self, start: float, end: float, max_turn: float = 0.06, max_gap: float = 14.0) -> list[float]:
        """Values of s from start to end, close together only where the curve turns (max_turn in radians)."""
        found = [start]
        fine = np.arange(start, end, 0.5)
        heading = np.interp(fine, self.arc, self.heading)
        last = 0
        for i in range(1, len(fine)):
            if abs(heading[i] - heading[last]) > max_turn or fine[i] - fine[last] > max_gap:
                found.append(float(fine[i]))
                last = i
        return [*found, end]
