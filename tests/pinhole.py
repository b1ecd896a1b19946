"""Where a camera sees points, for tests to look there."""

import numpy as np


def project_to_image(pts_3d: np.ndarray, lidar2img: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project points [N, 3] (metres, LiDAR frame) by a matrix [4, 4]: pixels [N, 2], depths [N] in metres.

    Pixels of points with depth <= 0 mean nothing; the caller looks at the depth.
    """
    homogeneous = pts_3d @ lidar2img[:3, :3].T + lidar2img[:3, 3]
    depth = homogeneous[:, 2]
    safe_depth = np.where(np.abs(depth) < 1e-6, 1e-6, depth)
    return homogeneous[:, :2] / safe_depth[:, None], depth
