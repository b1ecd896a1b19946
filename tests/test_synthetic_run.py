"""The steps of quickstart.sh and benchmark_world.sh, on a world of a few frames."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from training.flags import build_parser

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "SEED": 3, "TRAIN_SCENES": 2, "VAL_SCENES": 1, "SAMPLES_PER_SCENE": 2, "EPOCHS": 1, "BATCH_SIZE": 1,
    "NUM_WORKERS": 0, "PRESET": "tiny", "WARMUP_STEPS": 1, "DEVICE": "cpu", "NPROC_PER_NODE": 2, "OMP_NUM_THREADS": 1,
}  # fmt: skip


@pytest.mark.parametrize("script", ["quickstart.sh", "benchmark_world.sh"])
def test_the_settings_of_the_script_reach_a_flag(script):
    """A variable that no flag is made of would be lost without a word."""
    text = "".join((ROOT / "scripts" / name).read_text() for name in (script, "synthetic_run.sh"))
    exported = {word.split("=")[0] for line in map(str.strip, text.splitlines()) if line.startswith("export ")
                for word in line.removeprefix("export ").split()}  # fmt: skip
    known = {name.upper() for name in vars(build_parser("").parse_args([]))} | {"NPROC_PER_NODE", "OMP_NUM_THREADS"}
    assert len(exported) >= 9 and exported <= known, exported - known


def test_two_processes_go_from_nothing_to_a_score_and_a_picture_and_on(tmp_path):
    command = f"set -euo pipefail; DIR={tmp_path} RUN={tmp_path}/run; . scripts/environment.sh; " \
              ". scripts/synthetic_run.sh; synthetic_run"
    env = os.environ | {name: str(value) for name, value in SETTINGS.items()} | {"RESUME": "auto"}
    for time in range(2):  # the second time there is nothing left to train
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "held-out mAP 0." in done.stdout.splitlines()[-1]
        records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [record["epoch"] for record in records if record["kind"] == "val"] == [0, 1], time
    for name in ("picture.png", "sheet.png"):
        assert (tmp_path / "run" / name).stat().st_size > 10_000
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["mAP"] == records[-1]["result"]["mAP"], "evaluate.py and the training's validation agree"
