"""Images as the network takes them: where content lands, how near Pillow's filter, what is refused."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import data.pixels
from data.images import adjust_colours, load_image
from data.pixels import adjust_pixels, load_pixels, pixels_of, planes_of
from data.transforms import crop_window, pixel_transform
from tests.test_transforms import blob_image, centroid
from tools.benchmarks.common import private_memory_mb
from utils.errors import UserError


def whole_quality(path, source, window, size):
    return np.asarray(load_image(path, source, window, size, "token")), window


def reduced(path, source, window, size):
    pixels, shown = load_pixels(path, source, window, size, "token")
    assert pixels.dtype == torch.uint8
    return pixels.permute(1, 2, 0).numpy(), shown


@pytest.mark.parametrize("load", [whole_quality, reduced])
@pytest.mark.parametrize("source", [(1600, 900), (1601, 903), (400, 225)])
@pytest.mark.parametrize("size", [(336, 336), (112, 192), (90, 160), (700, 900)])
@pytest.mark.parametrize(("crop_top", "zoom"), [(0.0, 0.0), (0.3, 0.0), (0.2, 0.25)])
def test_content_lands_where_the_window_that_is_shown_says(tmp_path, load, source, size, crop_top, zoom):
    """Over every reduction of the JPEG decoder, to a fifth of a pixel."""
    centre = np.array([source[0] * 0.47, source[1] * 0.63])
    blob_image(*source, centre).save(tmp_path / "blob.jpg", quality=95)
    window = crop_window(source, crop_top, zoom, 0.3, 0.8)
    image, shown = load(str(tmp_path / "blob.jpg"), source, window, size)
    assert image.shape == (*size, 3)
    assert np.abs(shown - window).max() <= 4
    expected = pixel_transform(shown, size) @ [*centre, 1.0, 1.0]
    scale = max(1.0, size[1] / source[0])
    np.testing.assert_allclose(centroid(image), expected[:2], atol=0.2 * scale)


def test_the_filter_is_pillows_bicubic(tmp_path):
    """At a size where the decoder leaves nothing out, and in a window off the corner."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    image = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
    image.save(tmp_path / "noise.jpg", quality=95)
    window = np.array([40.0, 31.0, 300.0, 240.0])
    pixels, shown = load_pixels(str(tmp_path / "noise.jpg"), (320, 240), window, (150, 200), "token")
    np.testing.assert_array_equal(shown, window)
    with Image.open(tmp_path / "noise.jpg") as decoded:
        wanted = np.asarray(decoded.crop(tuple(window)).resize((200, 150), Image.Resampling.BICUBIC))
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1


def test_a_whole_image_is_shown_whole(tmp_path):
    blob_image(1600, 900, (800, 450)).save(tmp_path / "blob.jpg")
    window = crop_window((1600, 900), 0.0)
    _, shown = load_pixels(str(tmp_path / "blob.jpg"), (1600, 900), window, (336, 336), "token")
    np.testing.assert_array_equal(shown, window)


def test_a_grey_jpeg_is_read_as_colour_and_without_a_warning(tmp_path):
    blob_image(400, 225, (200, 100)).convert("L").save(tmp_path / "grey.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, _ = load_pixels(str(tmp_path / "grey.jpg"), (400, 225), crop_window((400, 225), 0.0), (112, 200), "t")
    assert torch.equal(pixels[0], pixels[2]) and pixels.max() > 200


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (80, 256)])
def test_planes_are_the_first_three_channels(size):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*size, 4), np.uint8))
    planes = planes_of(pixels)
    assert planes.is_contiguous() and planes.dtype == torch.uint8
    assert torch.equal(planes, pixels[..., :3].permute(2, 0, 1))


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (800, 450), (2400, 2000)])  # the last is more than 16 MB
def test_pixels_are_pillows_own(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    pixels = pixels_of(image)
    np.testing.assert_array_equal(pixels[..., :3].numpy(), np.asarray(image))
    in_one_block = 4 * size[0] * size[1] < 2**24
    if in_one_block and data.pixels._SHARES_PIXELS:
        assert pixels.data_ptr() == pixels_of(image).data_ptr(), "a copy was made"


def test_pixels_are_copied_where_pillow_does_not_share_them(monkeypatch):
    image = blob_image(64, 48, (20, 30))
    monkeypatch.setattr(data.pixels, "_SHARES_PIXELS", False)
    pixels = pixels_of(image)
    np.testing.assert_array_equal(pixels[..., :3].numpy(), np.asarray(image))
    assert pixels.data_ptr() != pixels_of(image).data_ptr()


def test_images_that_were_shared_are_freed():
    image = Image.new("RGB", (1600, 900))
    before = private_memory_mb()
    for _ in range(40):
        pixels_of(image.copy())  # 5.8 MB each
    assert private_memory_mb() - before < 60


def test_a_missing_image_is_named_with_its_sample(tmp_path):
    with pytest.raises(UserError, match=r"front\.jpg: no such image, sample token7 needs it"):
        load_pixels(str(tmp_path / "front.jpg"), (400, 225), crop_window((400, 225), 0.0), (112, 200), "token7")


def test_colours_change_as_those_of_a_picture():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 6, 9), dtype=torch.uint8, generator=generator)
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    for factors in ((1.2, 1.0, 1.0), (1.0, 0.7, 1.0), (0.9, 1.1, 0.3)):
        wanted = np.asarray(adjust_colours(picture, *factors))
        np.testing.assert_array_equal(adjust_pixels(pixels, *factors).permute(1, 2, 0).numpy(), wanted)
    assert adjust_pixels(pixels, 1.0, 1.0, 1.0) is pixels
