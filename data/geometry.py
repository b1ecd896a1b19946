"""Pure geometry on numpy arrays: rotations, rigid transforms, camera matrices, polylines.

Quaternions are [w, x, y, z] as in nuScenes. Pixel coordinates follow the intrinsics of nuScenes and OpenCV:
the centre of the top-left pixel is (0, 0). Every function takes empty input and returns empty output.
"""

import numpy as np


def quaternion_to_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Unit quaternions [..., 4] (w, x, y, z) to rotation matrices [..., 3, 3]."""
    q = np.asarray(quaternion, np.float64)
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    w, x, y, z = np.moveaxis(q, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def pose_matrix(translation: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Translations [..., 3] metres and quaternions [..., 4] to homogeneous transforms [..., 4, 4]."""
    rotation = quaternion_to_matrix(quaternion)
    pose = np.zeros(rotation.shape[:-2] + (4, 4))
    pose[..., :3, :3] = rotation
    pose[..., :3, 3] = translation
    pose[..., 3, 3] = 1.0
    return pose


def invert_rigid(pose: np.ndarray) -> np.ndarray:
    """Inverse of rigid transforms [..., 4, 4]."""
    inverse = np.zeros_like(pose)
    rotation_t = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation_t
    inverse[..., :3, 3] = -(rotation_t @ pose[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1.0
    return inverse


def yaw_of(pose: np.ndarray) -> np.ndarray:
    """Yaw in radians [...] of transforms [..., 4, 4]: where the x axis heads in the x-y plane."""
    return np.arctan2(pose[..., 1, 0], pose[..., 0, 0])


def without_roll_and_pitch(pose: np.ndarray) -> np.ndarray:
    """Keep yaw and translation of transforms [..., 4, 4]: the project's frame, given lidar2global."""
    yaw = yaw_of(pose)
    level = np.zeros_like(pose)
    level[..., 0, 0] = level[..., 1, 1] = np.cos(yaw)
    level[..., 1, 0] = np.sin(yaw)
    level[..., 0, 1] = -np.sin(yaw)
    level[..., 2, 2] = level[..., 3, 3] = 1.0
    level[..., :3, 3] = pose[..., :3, 3]
    return level


def lidar2img_matrix(camera_intrinsic: np.ndarray, cam2lidar: np.ndarray) -> np.ndarray:
    """Intrinsics [..., 3, 3] and camera-to-LiDAR extrinsics [..., 4, 4] to projections [..., 4, 4].

    Rows 0..2 of the product with (x, y, z, 1) in metres are (u * depth, v * depth, depth).
    """
    intrinsic = np.zeros(camera_intrinsic.shape[:-2] + (4, 4))
    intrinsic[..., :3, :3] = camera_intrinsic
    intrinsic[..., 3, 3] = 1.0
    return intrinsic @ invert_rigid(np.asarray(cam2lidar, np.float64))


def project_to_image(pts_3d: np.ndarray, lidar2img: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project points [N, 3] (metres, LiDAR frame) by a matrix [4, 4]: pixels [N, 2], depths [N] in metres.

    Pixels of points with depth <= 0 mean nothing; the caller looks at the depth.
    """
    homogeneous = pts_3d @ lidar2img[:3, :3].T + lidar2img[:3, 3]
    depth = homogeneous[:, 2]
    safe_depth = np.where(np.abs(depth) < 1e-6, 1e-6, depth)
    return homogeneous[:, :2] / safe_depth[:, None], depth


def is_closed(pts: np.ndarray) -> bool:
    """A ring repeats its first point and has at least three distinct vertices."""
    return len(pts) >= 4 and bool(np.all(pts[0] == pts[-1]))


def resample_line(pts: np.ndarray, num_points: int) -> np.ndarray:
    """Resample a polyline [N, 2] to num_points points [num_points, 2] at equal arc length, ends included.

    A line of zero length becomes num_points copies of its point. An empty line gives an empty array [0, 2].
    """
    pts = np.asarray(pts, np.float64)
    if len(pts) == 0:
        return pts.reshape(0, 2)
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(pts, axis=0), axis=1))])
    at = np.linspace(0.0, arc[-1], num_points)
    return np.stack([np.interp(at, arc, pts[:, axis]) for axis in range(pts.shape[1])], axis=1)


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
