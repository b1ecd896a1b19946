"""The sensors of a nuScenes car: nominal mounting and small differences from log to log.

Vehicle frame: x forward, y left, z up, origin on the ground below the rear axle. Camera frame: x right, y down,
z forward. Quaternions are [w, x, y, z].
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from data.geometry import pose_matrix

NATIVE_WIDTH, NATIVE_HEIGHT = 1600, 900

# yaw (degrees), focal length (px at 1600x900), position (m), timestamp before LIDAR_TOP's (microseconds)
CAMERA_MOUNTS = {
    "CAM_FRONT": (0.0, 1266.4, (1.70, 0.016, 1.51), 35_500),
    "CAM_FRONT_RIGHT": (-55.0, 1260.8, (1.55, -0.493, 1.50), 27_600),
    "CAM_FRONT_LEFT": (55.0, 1272.6, (1.52, 0.495, 1.51), 43_100),
    "CAM_BACK": (180.0, 809.2, (0.03, 0.003, 1.58), 10_400),
    "CAM_BACK_LEFT": (110.0, 1256.7, (1.04, 0.485, 1.59), 500),
    "CAM_BACK_RIGHT": (-110.0, 1259.5, (1.01, -0.481, 1.56), 20_100),
}
LIDAR_POSITION = (0.94, 0.0, 1.84)
LIDAR = "LIDAR_TOP"


@dataclass(frozen=True)
class Sensor:
    """Calibration of one sensor: pose in the vehicle frame and, for a camera, intrinsics [3, 3] (else None)."""

    translation: np.ndarray
    rotation: np.ndarray
    intrinsic: np.ndarray | None

    @property
    def sensor2ego(self) -> np.ndarray:
        """[4, 4]"""
        return pose_matrix(self.translation, self.rotation)


def quaternion_of(rotation: Rotation) -> np.ndarray:
    """[w, x, y, z] with w >= 0."""
    x, y, z, w = rotation.as_quat()
    return np.array([w, x, y, z]) * (1.0 if w >= 0 else -1.0)


def make_rig(rng: np.random.Generator, image_size: tuple[int, int]) -> dict[str, Sensor]:
    """The seven sensors of one log by channel; image_size is (width, height) in pixels."""
    rig = {}
    scale_x, scale_y = image_size[0] / NATIVE_WIDTH, image_size[1] / NATIVE_HEIGHT
    for channel, (yaw, focal, position, _) in CAMERA_MOUNTS.items():
        yaw_noise, pitch_noise, roll_noise = rng.normal(0.0, (0.5, 0.35, 0.35))
        # camera axes (x right, y down, z forward) seen from the vehicle, then turned
        look = Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        tilt = Rotation.from_euler("ZYX", [yaw + yaw_noise, pitch_noise, roll_noise], degrees=True)
        focal = focal * (1 + rng.normal(0.0, 0.003))
        # the centre of the top-left pixel is (0, 0), so its corner is (-0.5, -0.5)
        center_x = (816.0 + rng.normal(0.0, 8.0) + 0.5) * scale_x - 0.5
        center_y = (491.0 + rng.normal(0.0, 6.0) + 0.5) * scale_y - 0.5
        intrinsic = np.array([[focal * scale_x, 0.0, center_x], [0.0, focal * scale_y, center_y], [0.0, 0.0, 1.0]])
        translation = np.array(position) + rng.normal(0.0, 0.012, 3)
        rig[channel] = Sensor(translation, quaternion_of(tilt * look), intrinsic)
    tilt = [-90.0 + rng.normal(0.0, 0.4), rng.normal(0.0, 0.5), rng.normal(0.0, 0.5)]
    rotation = quaternion_of(Rotation.from_euler("ZYX", tilt, degrees=True))
    rig[LIDAR] = Sensor(np.array(LIDAR_POSITION) + rng.normal(0.0, 0.005, 3), rotation, None)
    return rig
