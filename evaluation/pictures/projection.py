"""Polylines on the ground into a camera image, piece by piece, without anything from behind the camera."""

import numpy as np

STEP = 0.25  # metres between points of a line before projection, so that pieces end near the image border
NEAR = 0.5  # metres of depth; a line ends there instead of passing through the camera


def densify_line(pts_m: np.ndarray, step: float = STEP) -> np.ndarray:
    """A polyline [n, 2] with points at most `step` metres apart; every vertex stays. [m, 2] float64."""
    pts_m = np.asarray(pts_m, np.float64)
    if len(pts_m) < 2:
        return pts_m.reshape(-1, 2)
    lengths = np.hypot(*np.diff(pts_m, axis=0).T)
    shares = [np.arange(count) / count for count in np.maximum(1, np.ceil(lengths / step)).astype(int)]
    parts = [
        start + share[:, None] * (end - start)
        for start, end, share in zip(pts_m[:-1], pts_m[1:], shares, strict=True)
    ]
    return np.concatenate([*parts, pts_m[-1:]])


def dash_line(pts_m: np.ndarray, on: float, off: float) -> list[np.ndarray]:
    """Pieces of a polyline [n, 2] that are drawn when it is dashed: `on` metres drawn, `off` metres not."""
    line = densify_line(pts_m, min(on, off) / 2)
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))]) if len(line) else np.zeros(0)
    return _runs(line, (arc[:-1] % (on + off)) < on - 1e-9)


def project_line(
    pts_m: np.ndarray, lidar2img: np.ndarray, ground_z: float, image_size: tuple[int, int]
) -> list[np.ndarray]:
    """The visible pieces, in pixels [k, 2], of a polyline [n, 2] (metres, LiDAR frame) at height ground_z.

    lidar2img [4, 4] is that of an image of image_size (W, H). A piece ends where the line comes nearer than
    NEAR or leaves the image (its last point may lie outside).
    """
    line = densify_line(pts_m)
    if len(line) < 2:
        return []
    homogeneous = line @ lidar2img[:3, :2].T + lidar2img[:3, 2] * ground_z + lidar2img[:3, 3]  # [m, 3]
    start, end = homogeneous[:-1].copy(), homogeneous[1:].copy()
    # Cut at the near plane before dividing by the depth: beyond it, a point would change sides.
    for cut, other in ((start, homogeneous[1:]), (end, homogeneous[:-1])):
        across = (cut[:, 2] < NEAR) & (other[:, 2] > NEAR)
        share = (NEAR - cut[across, 2]) / (other[across, 2] - cut[across, 2])
        cut[across] += share[:, None] * (other[across] - cut[across])
    seen = (start[:, 2] > NEAR - 1e-9) & (end[:, 2] > NEAR - 1e-9)
    depth = np.where(seen, start[:, 2], 1.0)[:, None], np.where(seen, end[:, 2], 1.0)[:, None]
    start, end = start[:, :2] / depth[0], end[:, :2] / depth[1]  # [m-1, 2] pixels
    high = np.array(image_size) - 0.5
    seen &= np.all((np.maximum(start, end) >= -0.5) & (np.minimum(start, end) <= high), axis=1)

    pieces, run = [], np.flatnonzero(np.diff(np.concatenate([[False], seen, [False]])))
    for first, last in zip(run[::2], run[1::2], strict=True):
        pieces.append(np.concatenate([start[first:last], end[last - 1 : last]]))
    return pieces


def _runs(line: np.ndarray, keep: np.ndarray) -> list[np.ndarray]:
    """The pieces of line [m, 2] made of consecutive segments with keep [m-1] True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]])))
    return [line[first : last + 1] for first, last in zip(edges[::2], edges[1::2], strict=True)]
