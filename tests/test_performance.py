"""Ratios of times that must not get lost, with slack for a machine that is not quite quiet: -m performance."""

import pytest

from tests.reference import REFERENCE, needs_reference
from tests.test_benchmark_model import run

pytestmark = pytest.mark.performance


@needs_reference
@pytest.mark.parametrize("preset", ["base", "tiny"])
def test_the_loader_is_near_the_bare_decode_and_far_from_a_full_one(monkeypatch, tmp_path, preset):
    images = REFERENCE / "real_sample" / "samples"
    flags = ["--images", images, "--presets", preset, "--repeats", 9, "--num-workers"]
    found = run(monkeypatch, tmp_path, "loader", *flags)[preset]
    assert found["yardstick_ratio"]["median"] >= 3
    assert found["bare_decode_ratio"]["median"] <= 1.6
    assert found["difference"] < 2


def test_ground_truth_does_not_wait_for_the_rest_of_the_city(monkeypatch, tmp_path, synthetic_world):
    flags = ["--samples", 200, "--larger-map", 10, "--devkit-samples", 2, "--cache-samples", 300]
    found = run(monkeypatch, tmp_path, "gt", "--dataroot", synthetic_world, *flags)
    for city in found["cities"].values():
        assert city["larger_map_ms"]["median"] <= 1.5 * city["ms"]["median"]
        assert city["devkit_ms"]["median"] >= 3 * city["ms"]["median"]
        assert city["limit_ratio"]["median"] <= 2


def test_the_criterion_is_far_from_loops_over_samples(monkeypatch, tmp_path):
    found = run(monkeypatch, tmp_path, "criterion", "--repeats", 5, "--steps", 0)
    assert found["yardstick_ratio"]["median"] >= 5
    assert found["matrix_yardstick_ratio"]["median"] >= 2.5
    assert found["limit_ratio"]["median"] <= 6


def test_the_evaluation_is_far_from_a_plain_implementation(monkeypatch, tmp_path):
    counts = {"samples": 120, "timed-samples": 100, "yardstick-samples": 10, "num-workers": 1}
    flags = [word for name, count in counts.items() for word in (f"--{name}", count)]
    found = run(monkeypatch, tmp_path, "eval", *flags)
    for protocol in ("maptr", "streammapnet"):
        assert found[protocol]["yardstick_ratio"] >= 2.5
        assert found[protocol]["limit_ratio"]["median"] <= 9


def test_a_step_at_full_width_is_near_the_rate_of_a_matrix_product(monkeypatch, tmp_path):
    found = run(monkeypatch, tmp_path, "step", "--layers", 1, "--steps", 1, "--warmup", 1)
    assert found["mfu"] >= 0.5


def test_attention_is_a_small_part_of_a_layer(monkeypatch, tmp_path):
    found = run(monkeypatch, tmp_path, "attention", "--repeats", 2, "--warmup", 1)
    assert found["share_of_layer"]["median"] <= 0.25
