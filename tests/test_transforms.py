import numpy as np
import pytest
from PIL import Image

from data.images import adjust_colours, load_image
from data.polylines import is_closed
from data.transforms import (
    Augmentation,
    AugmentConfig,
    crop_window,
    draw_augmentation,
    frame_transform,
    pixel_transform,
    transform_lines,
)
from utils.errors import UserError
from utils.frame import CAMERAS, PC_RANGES

PC_RANGE = PC_RANGES["60x30"]
RING = np.array([[1.0, 1], [1, 3], [4, 3], [4, 1], [1, 1]], np.float32)
LINE = np.array([[-3.0, -20], [-3, 20]], np.float32)


def signed_area(ring):
    x, y = ring.T
    return 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def blob_image(width, height, centre):
    """A dark image with one smooth bright blob, whose centroid says where it is to a fraction of a pixel."""
    v, u = np.mgrid[:height, :width]
    sigma = width / 40
    blob = np.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / (2 * sigma**2))
    return Image.fromarray(np.repeat((blob * 255).astype(np.uint8)[..., None], 3, axis=2))


def centroid(image):
    weight = np.asarray(image, np.float64)[..., 0]
    weight = np.where(weight > 40, weight, 0)
    v, u = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([(u * weight).sum(), (v * weight).sum()]) / weight.sum()


def test_pixel_transform_keeps_the_corners_of_the_window():
    window = np.array([100.0, 50.0, 500.0, 250.0])
    matrix = pixel_transform(window, (20, 40))
    np.testing.assert_allclose((matrix @ [99.5, 49.5, 1, 1])[:2], [-0.5, -0.5])
    np.testing.assert_allclose((matrix @ [499.5, 249.5, 1, 1])[:2], [39.5, 19.5])
    mirrored = pixel_transform(window, (20, 40), mirror=True)
    np.testing.assert_allclose((mirrored @ [99.5, 49.5, 1, 1])[:2], [39.5, -0.5])


def test_window_stays_inside_the_image_for_any_draw():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x0, y0, x1, y1 = crop_window((400, 225), 0.2, *rng.random(3) * [0.9, 1, 1])
        assert 0 <= x0 < x1 <= 400 + 1e-9 and 45 - 1e-9 <= y0 < y1 <= 225 + 1e-9


def test_draws_are_repeatable_and_within_the_configured_bounds():
    config = AugmentConfig(0.5, rotation_deg=5, zoom=0.2, brightness=0.3, contrast=0.2, saturation=0.1)
    drawn = [draw_augmentation(config, np.random.default_rng(seed)) for seed in range(300)]
    assert drawn == [draw_augmentation(config, np.random.default_rng(seed)) for seed in range(300)]
    assert 100 < sum(a.mirror for a in drawn) < 200
    assert 0.95 * np.deg2rad(5) < max(abs(a.rotation_rad) for a in drawn) <= np.deg2rad(5)
    assert 0.19 < max(window[0] for a in drawn for window in a.windows) <= 0.2
    for name, bound in (("brightness", 0.3), ("contrast", 0.2), ("saturation", 0.1)):
        values = np.array([getattr(a, name) for a in drawn])
        assert 0.9 * bound < np.abs(values - 1).max() <= bound


def test_the_default_configuration_changes_nothing():
    drawn = draw_augmentation(AugmentConfig(), np.random.default_rng(3))
    assert not drawn.mirror and drawn.rotation_rad == 0.0
    assert (drawn.brightness, drawn.contrast, drawn.saturation) == (1.0, 1.0, 1.0)
    for window in drawn.windows:
        np.testing.assert_array_equal(crop_window((400, 225), 0.0, *window), [0, 0, 400, 225])
    np.testing.assert_array_equal(frame_transform(drawn), np.eye(4))


@pytest.mark.parametrize("field", ["mirror_probability", "rotation_deg", "zoom", "brightness"])
@pytest.mark.parametrize("value", [-0.1, 46.0])
def test_a_configuration_out_of_bounds_is_refused(field, value):
    with pytest.raises(ValueError, match=f"AugmentConfig.{field}: {value}, expected 0 to"):
        AugmentConfig(**{field: value})


def test_mirror_negates_x_and_keeps_rings_closed_and_their_sense():
    labels, (ring, line) = transform_lines(
        np.array([1, 0]), [RING, LINE], Augmentation(mirror=True), PC_RANGE
    )
    np.testing.assert_array_equal(labels, [1, 0])
    np.testing.assert_allclose(ring, (RING * [-1, 1])[::-1])
    assert is_closed(ring)
    assert signed_area(ring) == pytest.approx(signed_area(RING))
    np.testing.assert_allclose(np.sort(line[:, 1]), [-20, 20])
    np.testing.assert_allclose(line[:, 0], [3, 3])


def test_rotation_turns_counter_clockwise_and_keeps_rings_closed():
    turn = Augmentation(rotation_rad=np.deg2rad(10))
    _, (ring,) = transform_lines(np.array([1]), [RING], turn, PC_RANGE)
    assert is_closed(ring)
    angle = np.arctan2(*ring[0][::-1]) - np.arctan2(*RING[0][::-1])
    assert np.rad2deg(angle) == pytest.approx(10)
    np.testing.assert_allclose(np.linalg.norm(ring, axis=1), np.linalg.norm(RING, axis=1))


def test_rotation_cuts_what_leaves_the_range():
    edge = np.array([[14.0, -30], [14, 30]], np.float32)
    ring = np.array([[10.0, 25], [14, 25], [14, 29], [10, 29], [10, 25]], np.float32)
    turn = Augmentation(rotation_rad=np.deg2rad(-5))
    labels, pts_m = transform_lines(np.array([2, 1]), [edge, ring], turn, PC_RANGE)
    np.testing.assert_array_equal(labels, [2, 1])
    for pts in pts_m:
        assert np.all(np.abs(pts) <= np.array([15, 30]) + 1e-9)
        assert not is_closed(pts)
    assert pts_m[0][:, 0].max() == pytest.approx(15)


def test_dust_is_dropped_and_empty_stays_empty():
    dust = np.array([[0.0, 0], [0.05, 0]], np.float32)
    labels, pts_m = transform_lines(np.array([2, 0]), [dust, LINE], Augmentation(), PC_RANGE)
    assert labels.tolist() == [0] and len(pts_m) == 1
    for augmentation in (Augmentation(), Augmentation(mirror=True, rotation_rad=0.1)):
        labels, pts_m = transform_lines(np.zeros(0, np.int64), [], augmentation, PC_RANGE)
        assert labels.shape == (0,) and labels.dtype == np.int64 and pts_m == []


def test_colour_changes_are_what_their_names_say():
    image = Image.new("RGB", (2, 2), (100, 150, 200))
    assert adjust_colours(image, 1.0, 1.0, 1.0).getpixel((0, 0)) == (100, 150, 200)
    assert adjust_colours(image, 1.2, 1.0, 1.0).getpixel((0, 0)) == (120, 180, 240)
    assert adjust_colours(image, 2.0, 1.0, 1.0).getpixel((0, 0)) == (200, 255, 255)
    assert adjust_colours(image, 1.0, 2.0, 1.0).getpixel((0, 0)) == (72, 172, 255)
    red, green, blue = adjust_colours(image, 1.0, 1.0, 0.0).getpixel((0, 0))
    assert red == green == blue


@pytest.mark.parametrize("content", ["missing", "truncated", "garbage", "empty", "other size"])
def test_a_bad_image_is_named_with_its_sample(tmp_path, content):
    path = tmp_path / "front.jpg"
    blob_image(400, 225, (200, 100)).save(path)
    if content == "missing":
        path.unlink()
    elif content == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif content == "garbage":
        path.write_bytes(b"<html>no such file</html>")
    elif content == "empty":
        path.write_bytes(b"")
    else:
        blob_image(200, 112, (100, 50)).save(path)
    with pytest.raises(UserError, match=r"front\.jpg: .*sample token7 .*; (unpack|restore)"):
        load_image(str(path), (400, 225), crop_window((400, 225), 0.0), (112, 200), "token7")


def test_a_grey_jpeg_is_read_as_colour(tmp_path):
    blob_image(400, 225, (200, 100)).convert("L").save(tmp_path / "grey.jpg")
    window = crop_window((400, 225), 0.0)
    assert load_image(str(tmp_path / "grey.jpg"), (400, 225), window, (112, 200), "t").mode == "RGB"


def test_there_is_a_window_for_every_camera():
    assert len(Augmentation().windows) == len(CAMERAS)
