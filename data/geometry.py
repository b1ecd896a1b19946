"""Pure geometry on numpy arrays: rotations, rigid transforms, camera matrices.

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


def transform_plane(pts: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points [N, 2] of the plane z = 0 moved by a level transform [4, 4], float64 [N, 2].

    Element by element, so that equal points stay equal to the bit and a ring stays closed.
    """
    x, y = np.asarray(pts, np.float64).T
    return np.stack([pose[axis, 0] * x + pose[axis, 1] * y + pose[axis, 3] for axis in (0, 1)], axis=1)


def lidar2img_matrix(camera_intrinsic: np.ndarray, cam2lidar: np.ndarray) -> np.ndarray:
    """Intrinsics [..., 3, 3] and camera-to-LiDAR extrinsics [..., 4, 4] to projections [..., 4, 4].

    Rows 0..2 of the product with (x, y, z, 1) in metres are (u * depth, v * depth, depth).
    """
    intrinsic = np.zeros(camera_intrinsic.shape[:-2] + (4, 4))
    intrinsic[..., :3, :3] = camera_intrinsic
    intrinsic[..., 3, 3] = 1.0
    return intrinsic @ invert_rigid(np.asarray(cam2lidar, np.float64))
