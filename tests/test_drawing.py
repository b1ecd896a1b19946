"""Pictures: the right colour at the right place, and nothing from behind a camera."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.gt_cache import write_gt_cache
from data.records import SampleRecord
from evaluation.drawing import CLASS_COLOURS, draw_bev, draw_camera, draw_sample
from evaluation.formats import write_maptr_predictions
from evaluation.projection import NEAR, dash_line, densify_line, project_line
from evaluation.vectors import Vectors, no_vectors
from tests.made_records import META
from utils.frame import CAMERAS, PC_RANGES

PC_RANGE = PC_RANGES["60x30"]
GROUND_Z = -1.8
SIZE = (160, 90)  # W, H
INTRINSIC = np.array([[80.0, 0.0, 79.5], [0.0, 80.0, 44.5], [0.0, 0.0, 1.0]])
ROOT = Path(__file__).resolve().parents[1]


def camera_looking(yaw_degrees):
    """Camera-to-LiDAR transform of a level camera at the origin; yaw 0 looks forward (y), 90 to the left."""
    yaw = np.radians(yaw_degrees)
    forward = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
    right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, [0.0, 0.0, -1.0], forward], axis=1)
    return pose


def lidar2img(yaw_degrees=0):
    matrix = np.eye(4)
    matrix[:3, :3] = INTRINSIC
    return matrix @ np.linalg.inv(camera_looking(yaw_degrees))


def record():
    yaws = {"CAM_FRONT": 0, "CAM_FRONT_LEFT": 55, "CAM_FRONT_RIGHT": -55}
    yaws |= {"CAM_BACK": 180, "CAM_BACK_LEFT": 110, "CAM_BACK_RIGHT": -110}
    return SampleRecord(
        sample_token="f" * 32,
        scene_name="scene-0001",
        location="boston-seaport",
        timestamp=0,
        image_paths=tuple(f"{name}.jpg" for name in CAMERAS),
        image_sizes=np.tile(SIZE, (6, 1)),
        camera_intrinsic=np.tile(INTRINSIC, (6, 1, 1)),
        cam2lidar=np.stack([camera_looking(yaws[name]) for name in CAMERAS]),
        lidar2global=np.eye(4),
        ego2global=np.eye(4),
        ground_z=GROUND_Z,
        labels=np.array([0, 2]),
        pts_m=[np.array([[x, -29.0], [x, 29.0]], np.float32) for x in (2.0, -9.0)],
    )


def has_colour(image, colour, tolerance=30):
    return np.all(np.abs(np.asarray(image, int) - np.array(colour)) <= tolerance, axis=-1)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_bev_puts_each_class_where_it_is(label):
    line = np.array([[5.0, -10.0], [5.0, 20.0]])
    image = draw_bev(Vectors(np.array([label]), [line]), PC_RANGE, height=600)  # 10 pixels a metre
    assert image.size == (300, 600)
    rows, columns = np.nonzero(has_colour(image, CLASS_COLOURS[label]))
    assert abs(columns.mean() - 199.5) <= 0.6 and columns.max() - columns.min() <= 5
    assert abs(rows.min() - 100) <= 3 and abs(rows.max() - 400) <= 3  # y = 20 is above y = -10
    for other in {0, 1, 2} - {label}:
        assert not has_colour(image, CLASS_COLOURS[other]).any()


def test_bev_shows_scores_and_the_car():
    line = np.array([[5.0, -10.0], [5.0, 0.0], [5.0, 10.0]])
    plain = np.asarray(draw_bev(Vectors(np.array([0]), [line]), PC_RANGE, 600), int)
    scored = np.asarray(draw_bev(Vectors(np.array([0]), [line], np.array([0.73])), PC_RANGE, 600), int)
    rows, columns = np.nonzero(np.any(plain != scored, axis=-1))
    assert len(rows) > 100 and abs(rows.mean() - 300) < 5 and abs(columns.mean() - 200) < 5
    assert plain[310, 146].max() < 130  # the body of the car, behind the LiDAR


def test_camera_panel_puts_the_line_where_the_camera_sees_it():
    line = np.array([[2.0, 6.0], [2.0, 12.0]])
    blank = Image.new("RGB", SIZE, (128, 128, 128))
    panel = draw_camera(blank, lidar2img(), GROUND_Z, Vectors(np.array([1]), [line]), None, (320, 180), 2.0)
    found = has_colour(panel, CLASS_COLOURS[1])
    for share in (0.1, 0.5, 0.9):
        x, y = 2.0, 6.0 + share * 6.0
        u, v = 79.5 + 80 * x / y, 44.5 + 80 * -GROUND_Z / y
        assert found[round(2 * v + 0.5), round(2 * u + 0.5)]  # the panel is twice as large
    assert found.sum() < 600


def test_a_line_behind_the_camera_draws_nothing():
    lines = [np.array([[-5.0, -20.0], [5.0, -2.0]]), np.array([[0.0, -1.0], [0.0, -9.0]])]
    behind = Vectors(np.array([0, 1]), lines)
    blank = Image.new("RGB", SIZE, (128, 128, 128))
    for solid, dashed in ((behind, None), (None, behind)):
        panel = draw_camera(blank, lidar2img(), GROUND_Z, solid, dashed, SIZE)
        assert np.all(np.asarray(panel) == 128)
    assert project_line(behind.pts_m[0], lidar2img(), GROUND_Z, SIZE) == []
    assert project_line(behind.pts_m[0], lidar2img(180), GROUND_Z, SIZE) != []


def test_a_line_through_the_camera_ends_at_the_near_plane():
    line = np.array([[0.3, -10.1], [0.3, 20.0]])
    tall = (160, 4000)  # the ground right below the camera is far down
    (piece,) = project_line(line, lidar2img(), GROUND_Z, tall)
    nearest = [79.5 + 80 * 0.3 / NEAR, 44.5 + 80 * -GROUND_Z / NEAR]
    np.testing.assert_allclose(piece[0], nearest, atol=1e-6)
    assert np.all(np.diff(piece[:, 1]) < 0)  # further is higher in the image, no wrap
    np.testing.assert_allclose(piece[-1], [79.5 + 80 * 0.3 / 20, 44.5 + 80 * -GROUND_Z / 20], atol=1e-6)


def test_projection_keeps_the_pieces_inside_the_image():
    across = np.array([[-60.0, 20.0], [60.0, 20.0], [60.0, 10.0], [-60.0, 10.0]])
    pieces = project_line(across, lidar2img(), GROUND_Z, SIZE)
    assert len(pieces) == 2
    for piece in pieces:
        assert piece[:, 0].min() > -4 and piece[:, 0].max() < 164
    assert project_line(np.zeros((0, 2)), lidar2img(), GROUND_Z, SIZE) == []


def test_dense_and_dashed_lines():
    line = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 4.1]])
    dense = densify_line(line, 0.25)
    assert np.linalg.norm(np.diff(dense, axis=0), axis=1).max() <= 0.25 + 1e-9
    assert all(np.any(np.all(dense == vertex, axis=1)) for vertex in line)
    pieces = dash_line(np.array([[0.0, 0.0], [0.0, 10.0]]), on=1.5, off=0.5)
    np.testing.assert_allclose([p[0, 1] for p in pieces], [0, 2, 4, 6, 8], atol=1e-9)
    np.testing.assert_allclose([p[-1, 1] - p[0, 1] for p in pieces], 1.5, atol=1e-9)
    assert dash_line(np.zeros((0, 2)), 1.0, 1.0) == []


def test_sample_picture_holds_both_panels_and_white_dashes():
    sample = record()
    images = [Image.new("RGB", (SIZE[0] // 2, SIZE[1] // 2), (128, 128, 128)) for _ in CAMERAS]  # half size
    truth = Vectors(sample.labels, sample.pts_m)
    predictions = Vectors(np.array([1]), [np.array([[-2.0, 4.0], [-2.0, 25.0]])], np.array([0.9]))
    alone = draw_sample(sample, images, truth, None, PC_RANGE)
    both = draw_sample(sample, images, truth, predictions, PC_RANGE)
    empty = draw_sample(sample, images, truth, no_vectors(scored=True), PC_RANGE)
    assert both.size == empty.size and both.width > alone.width and both.height == alone.height

    left = both.width - 12 - (3 * 560 + 12)
    of_cameras = np.asarray(both)[100:-12, left:-12]
    assert has_colour(of_cameras, CLASS_COLOURS[1]).sum() > 300
    assert not has_colour(of_cameras, CLASS_COLOURS[2]).any()  # ground truth is white here
    front = of_cameras[:310, 572:1120]
    u, v = 79.5 + 80 * -2.0 / 6.0, 44.5 + 80 * -GROUND_Z / 6.0  # a predicted point, 6 m ahead
    row, column = round(v * 3.5), round(u * 3.5)  # 160 pixels became 560
    assert has_colour(front, CLASS_COLOURS[1])[row - 4 : row + 5, column - 4 : column + 5].any()


def test_visualize_command(tmp_path):
    sample = record()
    for path in sample.image_paths:
        Image.new("RGB", SIZE, (128, 128, 128)).save(tmp_path / path)
    write_gt_cache(tmp_path / "cache", [sample], META)
    predictions = {sample.sample_token: Vectors(np.array([1, 1]), sample.pts_m, np.array([0.2, 0.8]))}
    write_maptr_predictions(tmp_path / "predictions.json", predictions, {})

    def visualize(*extra):
        command = f"tools/visualize.py --gt-cache {tmp_path}/cache --dataroot {tmp_path} "
        command += f"--predictions {tmp_path}/predictions.json --output {tmp_path}/out/a.png"
        command = [sys.executable, *command.split(), *extra]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    wrong = visualize("--index", "1")
    assert wrong.returncode == 2 and "no sample 1" in wrong.stderr and len(wrong.stderr.splitlines()) == 1
    os.rename(tmp_path / "CAM_BACK.jpg", tmp_path / "away.jpg")
    missing = visualize()
    assert missing.returncode == 2
    assert "CAM_BACK.jpg" in missing.stderr and sample.sample_token in missing.stderr
    assert not (tmp_path / "out" / "a.png").exists()
    os.rename(tmp_path / "away.jpg", tmp_path / "CAM_BACK.jpg")
    done = visualize("--sample-token", sample.sample_token)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "a.png") as picture:
        expected = draw_sample(
            sample,
            [Image.open(tmp_path / path) for path in sample.image_paths],
            Vectors(sample.labels, sample.pts_m),
            predictions[sample.sample_token].select(np.array([False, True])),
            PC_RANGE,
        )
        np.testing.assert_allclose(np.asarray(picture, int), np.asarray(expected, int), atol=2)
