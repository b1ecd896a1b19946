import json
import os
import shlex
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.made_llm import made_llm, save_llm
from tools import ablation
from training.flags import parse_args
from utils.errors import UserError
from utils.frame import CLASSES

RECIPE = "--mirror 0.5 --lr-qformer 1.2e-3 --lr-queries 1.2e-3 --lr-decoder 1.2e-3 "
# Two steps of the four training samples that a batch of 4 makes of the tiny world.
TRAIN_FLAGS = ["--preset", "tiny", "--device", "cpu", "--epochs", "1", "--warmup-steps", "1", "--num-workers", "0"]


def call(monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", ["ablation.py", *map(str, flags)])
    ablation.main()


@pytest.mark.parametrize("row", ablation.ROWS)
def test_a_row_changes_the_recipe_of_the_synthetic_worlds(row):
    recipe, changed = (vars(parse_args("", shlex.split(flags))) for flags in (RECIPE, RECIPE + ablation.ROWS[row][1]))
    assert (changed != recipe) == (row != "default")


def test_rows_are_trained_scored_and_not_repeated(tmp_path, synthetic_world, caches, monkeypatch, capsys):
    flags = ["--dataroot", synthetic_world, "--output-dir", tmp_path, "--rows", "default", "no-qformer"]
    call(monkeypatch, *flags, "--jobs", 2, "--", *TRAIN_FLAGS)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:2]] == ["default, seed 0", "no-qformer, seed 0"]
    assert printed[2].startswith("| change | seeds | mAP |") and len(printed) == 6
    assert printed[4].startswith("| the default | 0 | ") and "without the Q-Former" in printed[5]
    for row in ("default", "no-qformer"):
        config = json.loads((tmp_path / f"{row}_seed0" / "run" / "config.json").read_text())
        assert config["model_config"]["without"] == ([] if row == "default" else ["qformer"])
    written = (tmp_path / "default_seed0" / "output.log").stat().st_mtime_ns
    call(monkeypatch, *flags, "--", *TRAIN_FLAGS)
    again = capsys.readouterr()
    assert again.out.splitlines() == printed and "commits" not in again.err
    settings = tmp_path / "no-qformer_seed0" / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"commit": "an older one"}))
    call(monkeypatch, *flags, "--table")
    assert "an older one" in capsys.readouterr().err.partition("warning: begun at the commits ")[2]
    assert (tmp_path / "default_seed0" / "output.log").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"settings\.json: was begun with flags .*another --output-dir"):
        call(monkeypatch, *flags, "--", *TRAIN_FLAGS, "--mirror", "0.5")
    (tmp_path / "default_seed0" / "diagnosis.json").unlink()
    (tmp_path / "default_seed0" / "run" / "final_model.pth").unlink()
    (tmp_path / "default_seed0" / "run" / "run.lock").unlink()
    (tmp_path / "default_seed0" / "run" / "config.json").unlink()
    with pytest.raises(UserError, match=r"default, seed 0: ended with 2, see .*output\.log"):
        call(monkeypatch, *flags, "--", *TRAIN_FLAGS)


def test_the_row_of_a_pretrained_llm_reads_its_first_layers(
    tmp_path, synthetic_world, caches, monkeypatch, capsys
):
    folder = tmp_path / "a model"
    folder.mkdir()
    save_llm(folder, made_llm("llama", num_hidden_layers=3))
    call(monkeypatch, "--dataroot", synthetic_world, "--output-dir", tmp_path, "--rows", "pretrained-llm",
         "--pretrained-llm", os.path.relpath(folder), "--", *TRAIN_FLAGS)  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-1].startswith("| first 2 layers of a pretrained LLM | 0 | ")
    config = json.loads((tmp_path / "pretrained-llm_seed0" / "run" / "config.json").read_text())
    assert config["model_config"]["llm_path"] == str(folder) and config["model_config"]["llm_layers"] == 2


def diagnosis(first: float, last: float | None, without_scene: float) -> dict:
    rows = [{"mAP": value} | dict.fromkeys(CLASSES, value) for value in (first, last)]
    return {"heads": rows, "mean_scene": [{"mAP": 0.0}, {"mAP": without_scene}]}


def test_the_table_has_medians_and_ranges():
    found = {
        "default": {0: diagnosis(0.1, 0.5, 0.2), 2: diagnosis(0.3, 0.7, 0.4), 1: diagnosis(0.2, 0.4, 0.3)},
        "no-llm": {1: diagnosis(0.0, 0.45, 0.45)},
        "ema": {0: diagnosis(0.0, 0.0, 0.0)},
    }
    lines = ablation.table(found).splitlines()
    assert lines[2] == ("| the default | 0, 1, 2 | 0.500 (0.400 to 0.700) |  | 0.500 | 0.500 | 0.500 | 0.200 | 0.300 |")
    assert lines[3] == "| without the LLM | 1 | 0.450 | -0.050 | 0.450 | 0.450 | 0.450 | 0.000 | 0.450 |"
    assert len(lines) == 5
    nothing_to_find = {"default": {0: diagnosis(0.1, None, 0.2), 1: diagnosis(0.1, 0.5, 0.2)}}
    assert ablation.table(nothing_to_find).splitlines()[2].startswith("| the default | 0, 1 | - |  | - | - | - | 0.100")


def test_a_copy_that_somebody_keeps_is_not_a_seed(tmp_path):
    for name in ("default_seed0", "default_seed0_old", "default_seed3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "diagnosis.json").write_text("{}")
    assert ablation.collect(tmp_path) == {"default": {0: {}, 3: {}}}


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no finished row"):
        call(monkeypatch, "--output-dir", tmp_path, "--table")
    with pytest.raises(UserError, match="--dataroot: is missing"):
        call(monkeypatch, "--output-dir", tmp_path)
    with pytest.raises(UserError, match="^--rows pretrained-llm: which model"):
        call(monkeypatch, "--output-dir", tmp_path, "--rows", "pretrained-llm")
    tiny = ["--output-dir", tmp_path, "--dataroot", tmp_path, "--rows", "default", "--", "--preset", "tiny"]
    with pytest.raises(UserError, match=r"^row default: .*: no such cache; make it with .*generate_gt_cache\.py"):
        call(monkeypatch, *tiny)
    with pytest.raises(UserError, match="^-- --seed: is decided here for every row; give "):
        call(monkeypatch, *tiny, "--seed", 3)


def test_a_row_is_scored_on_the_ground_truth_it_is_trained_for(tmp_path, monkeypatch):
    """Splits, range and style behind the -- decide on the caches; parts left out there stay left out."""
    flags = ["--gt-style", "streammapnet", "--pc-range", "100x50", "--without", "geometry", *TRAIN_FLAGS]
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--output-dir", "a", "--dataroot", str(tmp_path), "--rows",
                                      "no-qformer", "--version", "v1.0-mini", "--",
                                      "--train-split=mini_train", "--val-split", "mini_val", *flags])  # fmt: skip
    args = ablation.parse_args()
    (tmp_path / "gt_cache").mkdir()
    paths = [tmp_path / "gt_cache" / f"v1.0-mini_{split}_100x50_streammapnet.safetensors"
             for split in ("mini_train", "mini_val")]  # fmt: skip
    for path in paths:
        with pytest.raises(UserError, match=f"^row no-qformer: {path}: no such cache; "):
            ablation.plan_row(args, "no-qformer")
        path.touch()
    row = ablation.plan_row(args, "no-qformer")
    assert [row.train_cache, row.val_cache] == paths
    assert parse_args("", row.flags).without == "qformer,geometry"
    args.train_flags += ["--llm-path", "none", "--without", "causal_prefix"]
    with pytest.raises(UserError, match="^row no-qformer: model settings: llm_path=none"):
        ablation.plan_row(args, "no-qformer")


def test_what_threads_run_ends_when_all_is_to_end():
    commands = ablation.Commands()
    with ThreadPoolExecutor(1) as pool, open(os.devnull, "wb") as log:
        sleeping = pool.submit(commands.run, ["sleep", "60"], log)
        while not commands._running:
            time.sleep(0.01)
        commands.end()
        assert sleeping.result(timeout=30) == -signal.SIGTERM
        assert commands.run(["sleep", "60"], log) == -signal.SIGTERM, "none begins any more"


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_run(synthetic_world, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/settings\.json: cannot be written, .* is not a writable folder"):
        call(monkeypatch, "--dataroot", synthetic_world, "--output-dir", tmp_path / "file", "--", *TRAIN_FLAGS)
