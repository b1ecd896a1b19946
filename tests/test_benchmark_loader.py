"""The benchmark of the loader: that it measures what it says, and that its yardstick is right."""

import numpy as np
import pytest
import torch
from PIL import Image

from models.config import PRESETS
from tests.reference import REFERENCE, needs_reference
from tests.test_benchmark_model import run
from tools.benchmarks import loader
from utils.errors import UserError

TINY = ["--warmup", 1, "--repeats", 2, "--batch-size", 2, "--batches", 2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six small JPEGs, smooth as photographs are."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(6):
        coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        (folder / str(number)).mkdir()
        picture = Image.fromarray(coarse).resize((800, 450), Image.Resampling.BICUBIC)
        picture.save(folder / str(number) / "front.jpg", quality=90)
    return folder


def test_the_stage_measures_what_it_says(monkeypatch, tmp_path, capsys, images):
    result = run(monkeypatch, tmp_path, "loader", "--images", images, *TINY, "--num-workers", 0, 1)
    out = capsys.readouterr().out
    assert set(result) == {"base", "tiny"}
    for preset, reduction in (("base", 1), ("tiny", 2)):
        found = result[preset]
        assert found["decoder_reductions"] == [reduction] * 6 and found["source_sizes"] == [[800, 450]] * 6
        for name in ("yardstick_ms", "bare_decode_ms", "ms"):
            assert found[name]["count"] == 2 and found[name]["median"] > 0
        for name in ("yardstick_ratio", "bare_decode_ratio"):
            assert found[name]["count"] == 2 and found[name]["p10"] > 0
        assert 0 < found["difference"] < 2
        assert f"{found['yardstick_ratio']['median']:.1f} times faster than Pillow's" in out
        own, worker = found["loaders"]
        assert own["num_workers"] == 0 and own["private_mb"] is None
        assert worker["num_workers"] == 1 and 0 < worker["private_mb"] < 1000
        assert own["samples_per_s"]["median"] > 0 and worker["samples_per_s"]["count"] == 3
    assert "base, 6 images of 800x450 to 336x336, one thread" in out


def test_samples_of_a_cache_are_measured_too(monkeypatch, tmp_path, synthetic_world, caches):
    flags = ["--gt-cache", caches["val"], "--dataroot", synthetic_world, "--presets", "tiny", "--num-workers"]
    result = run(monkeypatch, tmp_path, "loader", *flags, *TINY)
    assert result["tiny"]["source_sizes"] == [[400, 225]] * 6 and result["tiny"]["loaders"] == []


def test_without_images_a_key_frame_is_rendered(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "RENDERED_SIZE", (320, 180))
    result = run(monkeypatch, tmp_path, "loader", "--presets", "tiny", *TINY, "--num-workers")
    assert result["tiny"]["source_sizes"] == [[320, 180]] * 6


@pytest.mark.parametrize("preset", ["base", "tiny"])
def test_the_yardstick_is_what_an_image_processor_does(images, preset):
    from transformers import BlipImageProcessorPil

    height, width = size = PRESETS[preset].image_size
    path = images / "3" / "front.jpg"
    processor = BlipImageProcessorPil(size={"height": height, "width": width})
    with Image.open(path) as image:
        wanted = processor(image.crop((0, 100, 800, 450)), return_tensors="pt")["pixel_values"][0]
    found = loader.full_quality(str(path), np.array([0.0, 100.0, 800.0, 450.0]), size)
    # Up to what lies beyond the edge, which a crop cuts off and a window may read.
    torch.testing.assert_close(found[:, 3:], wanted[:, 3:], rtol=0, atol=1e-4)


def test_the_limit_is_a_decode_at_the_reduction(images):
    for reduction, size in ((1, (800, 450)), (2, (400, 225)), (4, (200, 113))):
        assert loader.bare_decode(str(images / "0" / "front.jpg"), reduction).size == size


def test_the_difference_is_in_grey_levels(monkeypatch, images):
    arguments = [str(images / "0" / "front.jpg")], [(800, 450)], [np.array([0.0, 0.0, 800.0, 450.0])], (80, 256)
    right = loader.difference(*arguments)
    load_pixels = loader.load_pixels

    def brighter(*given):
        pixels, shown = load_pixels(*given)
        return pixels.int() + 10, shown

    monkeypatch.setattr(loader, "load_pixels", brighter)
    assert right < 1 and loader.difference(*arguments) == pytest.approx(10, abs=1)


@needs_reference
@pytest.mark.parametrize("preset", ["base", "tiny"])
def test_real_images_differ_little_from_full_quality(preset):
    config = PRESETS[preset]
    paths = [str(path) for path in loader.image_paths([REFERENCE / "real_sample" / "samples"])]
    source = (1600, 900)
    windows = [loader.crop_window(source, config.crop_top)] * 6
    assert loader.difference(paths, [source] * 6, windows, config.image_size) < 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "{images}/0"], "0: 1 JPEGs, expected 6; name as many files"),
        (["--images", *["{images}/none.jpg"] * 6], "none.jpg: no such file"),
        (["--images", *["{images}/text.txt"] * 6], "text.txt: not a picture"),
        (["--gt-cache", "c.safetensors"], "--gt-cache and --dataroot go together"),
        (["--dataroot", "d"], "--gt-cache and --dataroot go together"),
        (["--gt-cache", "c", "--dataroot", "d", "--images", "{images}"], "without --images"),
        (["--repeats", "0"], "--repeats, --batch-size, --batches: expected at least 1"),
        (["--num-workers", "-1"], "--num-workers: at least 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(monkeypatch, tmp_path, images, flags, message):
    (images / "text.txt").write_text("no picture")
    with pytest.raises(UserError, match=message):
        run(monkeypatch, tmp_path, "loader", *(flag.format(images=images) for flag in flags))
