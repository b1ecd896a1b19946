import numpy as np
import pytest

from data.geometry import (
    clip_line,
    invert_rigid,
    is_closed,
    lidar2img_matrix,
    line_length,
    pose_matrix,
    project_to_image,
    quaternion_to_matrix,
    resample_line,
    without_roll_and_pitch,
    yaw_of,
)

LOW, HIGH = np.array([-1.0, -2.0]), np.array([1.0, 2.0])


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


def test_resampling_is_even_and_keeps_the_ends():
    pts = resample_line(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]]), 5)
    np.testing.assert_allclose(pts, [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]])


@pytest.mark.parametrize("pts", [[[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]])
def test_resampling_a_line_without_length(pts):
    np.testing.assert_array_equal(resample_line(np.array(pts), 3), np.tile([1.0, 2.0], (3, 1)))


def test_resampling_with_a_repeated_point():
    pts = resample_line(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), 5)
    np.testing.assert_allclose(pts[:, 0], [0, 0.5, 1, 1.5, 2])


def test_empty_lines():
    assert resample_line(np.zeros((0, 2)), 4).shape == (0, 2)
    assert clip_line(np.zeros((0, 2)), LOW, HIGH) == []
    assert line_length(np.zeros((0, 2))) == 0.0
    assert not is_closed(np.zeros((0, 2)))


def test_a_line_there_and_back_is_no_ring():
    assert not is_closed(np.array([[0.0, 0], [1, 0], [0, 0]]))
    assert is_closed(np.array([[0.0, 0], [1, 0], [1, 1], [0, 0]]))


def test_clipping_makes_a_piece_of_every_stay_inside():
    line = np.array([[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.5, 1.0]])
    pieces = clip_line(line, LOW, HIGH)
    assert len(pieces) == 2
    np.testing.assert_allclose(pieces[0], [[-1, 0], [0, 0], [1, 0]])
    np.testing.assert_allclose(pieces[1], [[1, 1], [0.5, 1]])


@pytest.mark.parametrize(
    "line",
    [
        [[2.0, 0.0], [3.0, 1.0]],  # beside the box
        [[0.0, 3.0], [2.0, 1.0]],  # through its corner alone
        [[1.5, -5.0], [1.5, 5.0]],  # parallel to an edge
    ],
)
def test_clipping_away(line):
    assert clip_line(np.array(line), LOW, HIGH) == []


def test_clipping_leaves_a_ring_inside_closed():
    ring = np.array([[0.0, 0], [0.5, 0], [0.5, 0.5], [0, 0]])
    (piece,) = clip_line(ring, LOW, HIGH)
    np.testing.assert_array_equal(piece, ring)


def test_clipping_a_ring_does_not_break_it_at_its_start():
    ring = np.array([[0.0, 0], [0, 1], [3, 1], [3, -1], [0, -1], [0, 0]])
    (piece,) = clip_line(ring, LOW, HIGH)
    np.testing.assert_allclose(piece, [[1, -1], [0, -1], [0, 0], [0, 1], [1, 1]])


def test_clipped_lines_agree_with_dense_sampling():
    """The pieces' total length is what a finely sampled line has inside the box."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        line = rng.uniform(-3, 3, (rng.integers(2, 8), 2))
        pieces = clip_line(line, LOW, HIGH)
        for piece in pieces:
            assert np.all((piece >= LOW - 1e-9) & (piece <= HIGH + 1e-9))
        share = (np.arange(4000)[:, None] + 0.5) / 4000
        dense = np.concatenate([a + (b - a) * share for a, b in zip(line[:-1], line[1:], strict=True)])
        weights = np.repeat(np.linalg.norm(np.diff(line, axis=0), axis=1) / 4000, 4000)
        inside = weights[np.all((dense >= LOW) & (dense <= HIGH), axis=1)].sum()
        assert sum(map(line_length, pieces)) == pytest.approx(inside, abs=0.03)
