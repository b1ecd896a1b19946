"""The benchmark of evaluation: files as a user has them, and memory of all processes."""

import json
import sys

import pytest

from tools import benchmark
from tools.benchmarks.process_tree import run_and_watch
from utils.errors import UserError


def test_the_eval_stage_measures_what_it_says(monkeypatch, tmp_path, capsys):
    flags = ["--samples", 12, "--timed-samples", 4, "--yardstick-samples", 2, "--json", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "eval", *map(str, flags)])
    benchmark.main()
    result = json.loads((tmp_path / "out.json").read_text())["result"]
    printed = capsys.readouterr().out
    for protocol in ("maptr", "streammapnet"):
        assert result[protocol]["ms"]["count"] == 4 and result[protocol]["yardstick_ms"]["count"] == 2
        assert result[protocol]["limit_ms"]["count"] == 4 and result[protocol]["limit_ratio"]["median"] > 1
        files = result["files"][protocol]
        assert 0.02 < files["peak_memory_gb"] < 0.3 and files["split_s"] > result["files"]["read_s"] > 0
        assert f"--protocol {protocol}: 12 samples, --num-workers 2, {files['split_s']:.1f} s" in printed
    assert result["files"]["megabytes"] > 0.2


def test_memory_is_that_of_all_processes(tmp_path):
    hold = "held = b'x' * {}; import time; time.sleep(1)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold.format(200_000_000)!r}])"
    seconds, peak = run_and_watch([sys.executable, "-c", start], tmp_path)
    assert seconds > 1 and 0.2 < peak < 0.3
    with pytest.raises(RuntimeError, match="no such luck"):
        run_and_watch([sys.executable, "-c", "raise SystemExit('no such luck')"], tmp_path)


def test_an_output_that_cannot_be_made_is_said_before_the_measurement(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "eval", "--json", str(tmp_path / "file" / "out.json")])
    with pytest.raises(UserError, match="not a writable folder"):
        benchmark.main()
