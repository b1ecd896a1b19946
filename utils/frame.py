"""The one frame and the one class list of the project.

Frame: origin at LIDAR_TOP of the key frame, x right, y forward, z up, metres. It is turned by the yaw of
lidar2global alone (roll and pitch left out), which is what MapTR's ground truth does; the ground is then the
plane z = ground_z. Plain `pts` are normalised to [0, 1] of `pc_range`, `pts_m` are metres.
"""

import numpy as np

CLASSES = ("divider", "ped_crossing", "boundary")

# The order of the camera axis V everywhere (nuScenes channel names).
CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
# CAMERAS[i] seen in a mirror stands where CAMERAS[MIRRORED_CAMERAS[i]] stands.
MIRRORED_CAMERAS = (0, 2, 1, 3, 5, 4)

# x_min, y_min, z_min, x_max, y_max, z_max in metres; the name is length (y) x width (x).
PC_RANGES = {
    "60x30": (-15.0, -30.0, -2.0, 15.0, 30.0, 2.0),
    "100x50": (-25.0, -50.0, -2.0, 25.0, 50.0, 2.0),
}


def normalize_pts(pts_m, pc_range):
    """Metres to [0, 1] of pc_range; arrays or tensors [..., 2], same kind and dtype back."""
    low, size = _extent(pts_m, pc_range)
    return (pts_m - low) / size


def denormalize_pts(pts, pc_range):
    """[0, 1] of pc_range to metres; arrays or tensors [..., 2], same kind and dtype back."""
    low, size = _extent(pts, pc_range)
    return pts * size + low


def _extent(like, pc_range):
    low = list(pc_range[:2])
    size = [pc_range[3 + axis] - pc_range[axis] for axis in (0, 1)]
    if isinstance(like, np.ndarray):
        return np.asarray(low, like.dtype), np.asarray(size, like.dtype)
    return tuple(constant_like(like, values) for values in (low, size))


def constant_like(like, values):
    """A tensor of these numbers, of the dtype and on the device of the tensor `like`.

    On a GPU it is copied without waiting for what that still computes, as `new_tensor` would.
    """
    return like.new_tensor(values, device="cpu").to(like.device, non_blocking=True)
