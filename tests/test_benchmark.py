import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tools.benchmarks.common import make_again, recorded_calls

ROOT = Path(__file__).resolve().parents[1]


def benchmark(*arguments):
    """Run the tool; its exit code, output and error output."""
    command = [sys.executable, "tools/benchmark.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_ground_truth_stage_measures_what_it_says(synthetic_world, tmp_path):
    code, out, error = benchmark(
        *("gt", "--dataroot", synthetic_world, "--json", tmp_path / "gt.json", "--samples", 40),
        *("--larger-map", 3, "--devkit-samples", 2, "--cache-samples", 300),
    )
    assert code == 0, error
    content = json.loads((tmp_path / "gt.json").read_text())
    assert content["stage"] == "gt" and content["settings"]["samples"] == 40
    assert content["machine"]["packages"]["shapely"]
    cities = content["result"]["cities"]
    assert sum(city["ms"]["count"] for city in cities.values()) == 40
    for name, city in cities.items():
        assert sum(city["share"].values()) == pytest.approx(1.0)
        assert all(share > 0 for share in city["share"].values())
        assert city["devkit_ms"]["median"] > city["ms"]["median"]
        assert city["larger_map_ms"]["count"] == city["ms"]["count"] and city["larger_map_ms"]["median"] > 0
        assert f"{name}: {city['ms']['median']:.2f} ms a sample" in out
        assert city["limit_ratio"]["count"] == city["ms"]["count"] and city["limit_ratio"]["median"] > 1
        assert f"Shapely's calls alone: {city['limit_ms']['median']:.2f} ms" in out
    assert content["result"]["cache"]["samples"] == 300
    assert 0 <= content["result"]["cache"]["memory_mb"] < 20


def test_recorded_calls_are_those_that_were_made_and_can_be_made_again():
    made = []
    module = ModuleType("module")
    module.once = lambda number: made.append(number) or number
    module.twice = lambda number: 2 * module.once(number)
    once, twice = module.once, module.twice
    with recorded_calls(module, ["once", "twice"]) as calls:
        assert module.once(3) == 3 and module.twice(number=5) == 10
    assert (module.once, module.twice) == (once, twice) and len(calls) == 2
    make_again(calls)
    assert made == [3, 5, 3, 5]
    with pytest.raises(ZeroDivisionError), recorded_calls(module, ["once"]):
        1 / 0  # noqa: B018
    assert module.once is once


def test_bad_settings_are_one_line(tmp_path):
    code, _, error = benchmark("gt", "--dataroot", tmp_path / "none")
    assert code == 2 and "no such folder" in error and len(error.splitlines()) == 1
    code, _, error = benchmark("gt", "--dataroot", tmp_path, "--samples", 0)
    assert code == 2 and "expected 1 or more" in error


def test_stages_without_maps_do_without_their_packages(tmp_path):
    hide = "import runpy, sys; sys.modules.update(dict.fromkeys(['shapely', 'nuscenes', 'cv2'])); del sys.argv[0]; "
    command = [sys.executable, "-c", hide + "runpy.run_path(sys.argv[0], run_name='__main__')", "tools/benchmark.py"]

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)

    done = run("params", "--preset", "tiny", "--json", str(tmp_path / "params.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "params.json").read_text())["stage"] == "params"
    done = run("gt", "--dataroot", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: gt: needs shapely, which is not installed; pip install -r requirements.txt\n"
