"""The stages startup, scaling and cost of tools/benchmark.py."""


import pytest

from tests.test_benchmark_model import run
from tools.benchmarks.cost import ring_traffic
from tools.benchmarks.scaling import exponent
from utils.errors import UserError


def test_startup_sees_the_first_step_after_the_first_line(monkeypatch, tmp_path):
    found = run(monkeypatch, tmp_path, "startup", "--samples", 40, "--num-workers", 1, "--repeats", 1)
    imports, line, step = (found[name]["median"] for name in ("imports_s", "first_line_s", "first_step_s"))
    assert 0 < line < step and imports > 0 and found["samples"] == 40


def test_scaling_changes_one_size_at_a_time(monkeypatch, tmp_path):
    flags = ["--batches", 1, 4, "--cameras", 1, 6, "--instances", 8, 48, "--points", 4, 24, "--image-scales", 1, 3,
             "--samples", 20, 200, "--batch-size", 1, "--steps", 1, "--warmup", 1]  # fmt: skip
    found = run(monkeypatch, tmp_path, "scaling", *flags)
    assert list(found) == ["batch", "cameras", "instances", "points", "image pixels", "samples of a cache",
                           "samples of an evaluation"]  # fmt: skip
    for name, row in found.items():
        assert row["exponent"] == pytest.approx(exponent(row["sizes"], row["seconds"])), name
        assert min(row["seconds"]) > 0, name
    # Of a single step; the smaller ones are lost in the machine's noise.
    assert found["batch"]["exponent"] > 0 and found["samples of an evaluation"]["exponent"] > 0
    assert found["image pixels"]["sizes"] == [1, 9]


@pytest.mark.parametrize(("sizes", "seconds", "slope"), [([1, 2, 4], [3, 6, 12], 1.0), ([1, 10], [5, 5], 0.0),
                                                         ([2, 4, 8], [1, 4, 16], 2.0)])  # fmt: skip
def test_the_exponent_is_the_slope(sizes, seconds, slope):
    assert exponent(sizes, seconds) == pytest.approx(slope, abs=1e-9)


def test_cost_of_the_first_layers_alone(monkeypatch, tmp_path):
    whole, half = (run(monkeypatch, tmp_path, "cost", "--preset", "tiny", *flags)
                   for flags in ((), ("--llm-layers", 1, "--llm-quantization", "nf4")))  # fmt: skip
    without = run(monkeypatch, tmp_path, "cost", "--preset", "tiny", "--llm-path", "none")["tflop_a_sample"]
    of_llm = [found["tflop_a_sample"] - without for found in (whole, half)]
    assert of_llm[1] == pytest.approx(of_llm[0] / 2, rel=0.05), "one of two layers"


def test_cost_counts_what_step_counts_and_models_the_rest(monkeypatch, tmp_path):
    flags = ["--preset", "tiny", "--epochs", 2, "--mfu", 0.25, "--ranks", 4]
    found = run(monkeypatch, tmp_path, "cost", *flags)
    step = run(monkeypatch, tmp_path, "step", "--preset", "tiny", "--steps", 1, "--warmup", 0)
    assert found["tflop_a_sample"] == pytest.approx(step["model_tflop"])
    without = run(monkeypatch, tmp_path, "cost", *flags, "--llm-path", "none")["tflop_a_sample"]
    assert found["tflop_with_checkpointing"] == pytest.approx(1.5 * found["tflop_a_sample"] - 0.5 * without)
    hours = 2 * 28_130 * found["tflop_a_sample"] / (0.25 * 312) / 3600
    assert found["hours"]["A100, train"][0] == pytest.approx(hours)
    # 2.4 million trained values of 4 bytes; of four ranks each sends one and a half times as much.
    assert found["gradient_gb"] == pytest.approx(0.0096, abs=3e-4)
    traffic = found["traffic"]["H100, 4"]
    assert traffic["gb_a_step"] == pytest.approx(1.5 * found["gradient_gb"]) == ring_traffic(found["gradient_gb"], 4)
    assert traffic["gb_per_s"] == pytest.approx(traffic["gb_a_step"] * 0.25 * 989 / found["tflop_a_sample"])


@pytest.mark.parametrize("flags", [
    ["startup", "--samples", 0], ["scaling", "--cameras", 7], ["scaling", "--preset", "tiny", "--points", 3],
    ["cost", "--mfu", 0],
])
def test_sizes_that_cannot_be_meant_are_refused(flags, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--|num_points=3"):
        run(monkeypatch, tmp_path, *flags)
