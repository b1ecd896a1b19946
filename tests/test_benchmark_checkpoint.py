"""The benchmark of saving and loading a checkpoint."""

import os

import pytest

from models.detector import build_detector
from tests.micro import micro_config
from tests.test_benchmark_model import run
from tools.benchmarks.checkpoint import made_up_checkpoint
from utils.checkpoint import trainable_state
from utils.errors import UserError


def test_the_stage_measures_what_it_says(monkeypatch, tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    result = run(monkeypatch, tmp_path, "checkpoint", "--preset", "tiny", "--folder", tmp_path / "disk", "--repeats", 2)
    assert result["optimizer_gb"] == pytest.approx(2 * result["weights_gb"], rel=0.01)
    assert result["file_gb"] == pytest.approx(result["weights_gb"] + result["optimizer_gb"], rel=0.05)
    assert all(result[name]["count"] == 2 and result[name]["median"] > 0 for name in ("digest_s", "save_s", "load_s"))
    assert result["digest_s"]["median"] < result["save_s"]["median"]
    assert f"saved in {result['save_s']['median']:.2f} s" in capsys.readouterr().out
    assert not os.listdir(tmp_path / "disk")


def test_the_made_up_checkpoint_is_of_the_sizes_of_a_real_one():
    config = micro_config()
    made_up, real = made_up_checkpoint(config)["model_state_dict"], trainable_state(build_detector(config))
    assert {name: (p.shape, p.dtype) for name, p in made_up.items()} == {
        name: (p.shape, p.dtype) for name, p in real.items()
    }


def test_settings_that_cannot_be_meant_are_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--repeats 0: must be at least 1"):
        run(monkeypatch, tmp_path, "checkpoint", "--repeats", 0)
    with pytest.raises(UserError, match="none: no such folder"):
        run(monkeypatch, tmp_path, "checkpoint", "--folder", tmp_path / "none")
