"""Pictures: the right colour at the right place, and nothing from behind a camera."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.gt_cache import write_gt_cache
from data.records import SampleRecord
from evaluation.formats import write_maptr_predictions
from evaluation.pictures.animation import FORMATS, save_animation
from evaluation.pictures.canvas import CLASS_COLOURS, PAPER
from evaluation.pictures.contact_sheet import Cell, draw_contact_sheet
from evaluation.pictures.drawing import FRAME, draw_bev, draw_camera, draw_sample
from evaluation.pictures.projection import NEAR, dash_line, densify_line, project_line
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


def test_scores_leave_the_car_visible_and_stay_on_the_visible_part():
    through_car = np.stack([np.zeros(21), np.linspace(-20.0, 20.0, 21)], axis=1)
    leaving = np.stack([np.linspace(-10.0, -60.0, 21), np.full(21, 20.0)], axis=1)  # the middle lies outside
    vectors = Vectors(np.array([0, 2]), [through_car, leaving], np.array([0.8, 0.6]))
    unscored = Vectors(vectors.labels, vectors.pts_m)
    plain, scored = (np.asarray(draw_bev(shown, PC_RANGE, 600), int) for shown in (unscored, vectors))
    changed = np.any(plain != scored, axis=-1)
    assert not changed[276:317, 141:159].any()  # the car: 0.87 m to each side, 2.43 m ahead to 1.65 m behind
    rows, columns = np.nonzero(changed)
    assert (columns > 100).any() and (columns < 60).any() and columns.min() > 5
    assert abs(rows[columns < 60].mean() - 100) < 5  # y = 20


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


def test_small_layout_has_scale_bar_and_whole_legend():
    sample = record()
    images = [Image.new("RGB", SIZE, (128, 128, 128)) for _ in CAMERAS]
    truth = Vectors(sample.labels, sample.pts_m)
    scored = Vectors(truth.labels, truth.pts_m, np.array([0.5, 0.6]))
    picture = np.asarray(draw_sample(sample, images, truth, scored, PC_RANGE, FRAME, "a title"), int)
    height, width = picture.shape[:2]
    left = width - 12 - (3 * FRAME.camera_width + 12)
    heading = picture[12:69, left:]
    for colour in CLASS_COLOURS:
        assert has_colour(heading, colour, 0).sum() > 50
    right_end = np.nonzero(np.any(heading != PAPER, axis=(0, 2)))[0].max()
    assert 600 < right_end < heading.shape[1] - 12  # the last word is not cut off
    bar = np.all(picture[-24:-12, :left] < 60, axis=-1)  # nothing else below the panels is as dark and as long
    longest = max(len(run) for row in bar for run in "".join(map(str, row.astype(int))).split("0"))
    map_height = np.nonzero(np.all(picture[:, 13:30] < 60, axis=(1, 2)))[0]  # upper and lower edge of the panel
    assert longest == pytest.approx((map_height.max() - map_height.min()) / 6, abs=4)  # 10 of 60 m
    panels = np.asarray(draw_sample(sample, images, truth, truth, PC_RANGE, FRAME, "a title"), int)
    np.testing.assert_array_equal(panels[:, :left], picture[:, :left])  # no scores in panels of this size


def test_contact_sheet_in_reading_order_with_room_for_every_caption():
    line = np.array([[5.0, -10.0], [5.0, 20.0]])
    cells = [
        Cell(("a caption that is much wider than the one panel below it", ""), (("", Vectors(np.array([0]), [line])),)),
        Cell(("", ""), (("", Vectors(np.array([1]), [line], np.array([0.4]))),)),
        Cell(("", ""), (("", Vectors(np.array([2]), [line])),)),
    ]
    sheet = np.asarray(draw_contact_sheet("A title", cells, PC_RANGE, panel_height=300), int)  # 5 pixels a metre
    upper = 92 + 3 * 20 + 2  # heading, two captions and the line of counts
    first, second = sheet[upper : upper + 300], sheet[upper + 386 : upper + 686]  # rows: a cell is wider than high
    panels = zip((first, first, second), CLASS_COLOURS, strict=True)
    places = [np.nonzero(has_colour(panel, colour, 0)) for panel, colour in panels]
    columns = [place[1].mean() for place in places]
    assert columns[0] == pytest.approx(12 + 100, abs=1.5)  # 20 m right of the left edge
    assert columns[2] == pytest.approx(columns[0], abs=1.5)
    for rows, _ in places:
        assert abs(rows.min() - 50) <= 3 and abs(rows.max() - 200) <= 3  # y = 20 and -10
    caption = np.nonzero(np.any(sheet[92:112] != PAPER, axis=(0, 2)))[0]
    second_panel = columns[1] - 100
    assert 300 < caption.max() < second_panel - 12

    one = np.asarray(draw_contact_sheet("A title that is wider than one panel", cells[1:2], PC_RANGE), int)
    assert np.all(one[:, -12:] == PAPER) and one.shape[1] > 600  # the legend and the scale bar stay whole
    many = draw_contact_sheet("", cells * 7, PC_RANGE)
    assert 1.0 < many.width / many.height < 2.5


@pytest.mark.parametrize("suffix", FORMATS)
def test_animation_keeps_frames_times_and_drawn_colours(suffix):
    rng = np.random.default_rng(0)
    frames = []
    for index in range(3):
        frame = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)  # more colours than a palette holds
        frame[:30] = PAPER
        frame[10:16, 10 + 20 * index : 70 + 20 * index] = CLASS_COLOURS[index]
        frame[22, 50:53] = CLASS_COLOURS  # too few pixels for a palette made of the whole frame
        frames.append(Image.fromarray(frame))
    file = io.BytesIO()
    save_animation(file, iter(frames), 4.0, suffix)
    with Image.open(file) as animation:
        assert (animation.format, animation.n_frames, animation.size) == (FORMATS[suffix], 3, (120, 90))
        assert animation.info["loop"] == 0
        for index, frame in enumerate(frames):
            animation.seek(index)
            animation.load()  # WebP knows the duration only then
            assert animation.info["duration"] == 250
            shown = np.asarray(animation.convert("RGB"), int)[:29]
            if suffix == ".gif":
                np.testing.assert_array_equal(shown, np.asarray(frame)[:29])
            assert np.abs(shown[12:14, 30 + 20 * index] - np.array(CLASS_COLOURS[index])).max() <= 12


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
