import numpy as np

from data.geometry import (
    invert_rigid,
    lidar2img_matrix,
    pose_matrix,
    quaternion_to_matrix,
    without_roll_and_pitch,
    yaw_of,
)
from tests.pinhole import project_to_image


def random_poses(count, seed=0):
    rng = np.random.default_rng(seed)
    return pose_matrix(rng.normal(size=(count, 3)), rng.normal(size=(count, 4)))


def test_quaternion_turns_as_its_axis_and_angle_say():
    half = np.deg2rad(30) / 2
    turn = quaternion_to_matrix([np.cos(half), 0, 0, np.sin(half)])
    np.testing.assert_allclose(turn @ [1, 0, 0], [np.cos(2 * half), np.sin(2 * half), 0], atol=1e-12)


def test_inverse_of_rigid_transforms():
    poses = random_poses(5)
    np.testing.assert_allclose(invert_rigid(poses) @ poses, np.tile(np.eye(4), (5, 1, 1)), atol=1e-12)


def test_level_frame_keeps_yaw_and_translation():
    poses = random_poses(5)
    level = without_roll_and_pitch(poses)
    np.testing.assert_allclose(yaw_of(level), yaw_of(poses))
    np.testing.assert_array_equal(level[:, :3, 3], poses[:, :3, 3])
    np.testing.assert_array_equal(level[:, 2, :3], np.tile([0.0, 0.0, 1.0], (5, 1)))


def test_projection_of_a_point_straight_ahead():
    intrinsic = np.array([[100.0, 0, 50], [0, 100.0, 40], [0, 0, 1]])
    pixels, depth = project_to_image(np.array([[1.0, 2.0, 10.0]]), lidar2img_matrix(intrinsic, np.eye(4)))
    np.testing.assert_allclose(pixels, [[60.0, 60.0]])
    np.testing.assert_allclose(depth, [10.0])
