import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert content["result"]["cache"]["samples"] == 300
    assert 0 <= content["result"]["cache"]["memory_mb"] < 20


def test_bad_settings_are_one_line(tmp_path):
    code, _, error = benchmark("gt", "--dataroot", tmp_path / "none")
    assert code == 2 and "no such folder" in error and len(error.splitlines()) == 1
    code, _, error = benchmark("gt", "--dataroot", tmp_path, "--samples", 0)
    assert code == 2 and "expected 1 or more" in error
