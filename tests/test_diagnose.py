import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.gt_cache import GTCache, write_gt_cache
from data.polylines import resample_lines
from evaluation.chamfer_ap import SampleMatches
from evaluation.chamfer_ap import evaluate as evaluate_vectors
from evaluation.diagnosis import head_rows, near_counts, query_use, reliability, reliability_of
from evaluation.head_outputs import heads_without_scene, observe_heads
from evaluation.inference import build_loader, load_detector, predict
from evaluation.spreads import RunningSpread
from evaluation.vectors import ground_truth_of
from models.alarms import SPREADS
from models.detector import spread_across_batch
from tests.made_records import META, make_random_records
from tests.micro import save_shaken_checkpoint
from tools import diagnose, evaluate
from training.interruption import SignalWatch
from training.validation import score_split
from utils.distributed import Ranks, in_batches
from utils.errors import run_cli
from utils.frame import CLASSES, PC_RANGES

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
KEPT = 3  # of the 5 queries whose lines the made ground truth holds


def run(tool, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, flags)])
    tool.main()


def matches_of(scores, chamfer, true_positive=None):
    """A sample's matches at the thresholds 0.5, 1.0 and 1.5 m."""
    chamfer = np.array(chamfer)
    hits = chamfer[:, None] <= np.array([0.5, 1.0, 1.5]) if true_positive is None else np.array(true_positive)
    return SampleMatches(np.zeros(len(scores), int), np.array(scores), hits, chamfer, np.array([1, 0, 0]))


def test_perfectly_calibrated_scores_have_no_error():
    scores = np.repeat([0.25, 0.75], 4)
    found = reliability(scores, np.array([1, 0, 0, 0, 1, 1, 1, 0], bool))
    assert found["expected_calibration_error"] == pytest.approx(0.0)
    assert [each["count"] for each in found["bins"]] == [0, 0, 4, 0, 0, 0, 0, 4, 0, 0]
    assert found["bins"][2]["precision"] == found["bins"][2]["mean_score"] == 0.25
    assert found["bins"][0]["precision"] is None


def test_the_calibration_error_weighs_bins_by_their_predictions():
    scores, correct = np.array([0.95, 0.95, 0.95, 0.15]), np.array([False, False, False, False])
    assert reliability(scores, correct)["expected_calibration_error"] == pytest.approx((3 * 0.95 + 0.15) / 4)
    # Too high in one place is not made good by too low in another.
    scores, correct = np.array([0.9, 0.1]), np.array([False, True])
    assert reliability(scores, correct)["expected_calibration_error"] == pytest.approx(0.9)


def test_bins_own_their_lower_edge_and_the_last_one_both():
    edges = np.array([0.0, 0.3, 0.6, 0.7, 1.0])
    for scores in (edges, edges.astype(np.float32)):
        counts = [each["count"] for each in reliability(scores, np.ones(5, bool))["bins"]]
        assert counts == [1, 0, 0, 1, 0, 0, 1, 1, 0, 1]
    empty = reliability(np.zeros(0), np.zeros(0, bool))
    assert empty["expected_calibration_error"] is None and not any(each["count"] for each in empty["bins"])


def test_calibration_of_a_split_is_at_one_metre_wherever_that_stands():
    samples = [matches_of([0.9, 0.8], [0.7, 1.2], [[False, True, True], [False, False, True]])]
    found = reliability_of(samples, (0.5, 1.0, 1.5))["bins"]
    assert found[9]["precision"] == 1.0 and found[8]["precision"] == 0.0
    assert reliability_of(samples, (1.0, 1.5, 2.0))["bins"][9]["precision"] == 0.0


def test_queries_that_never_match_are_dead():
    use = query_use(np.array([6, 6, 0, 0]), np.array([0, 3, 0, 0]))
    assert use["ever_matched"] == 0.5 and use["never_matched"] == 2 and use["ever_near"] == 0.25
    assert use["effective_number"] == pytest.approx(2.0)
    assert query_use(np.array([0, 9, 0]), np.zeros(3))["effective_number"] == pytest.approx(1.0)
    nothing = query_use(np.zeros(3), np.zeros(3))
    assert nothing["effective_number"] == 0.0 and nothing["never_matched"] == 3
    # Three quarters on one query: exp(0.75 ln(4/3) + 0.25 ln 4).
    assert query_use(np.array([3, 1]), np.zeros(2))["effective_number"] == pytest.approx((4 / 3) ** 0.75 * 4**0.25)


def test_a_query_is_near_when_it_is_both_close_and_sure():
    samples = [matches_of([0.9, 0.9, 0.2], [1.4, 1.6, 0.1]), matches_of([0.5, 0.2, 0.3], [0.1, np.inf, 0.1])]
    assert near_counts(samples).tolist() == [2, 0, 0]


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (1, 1, 5)])
def test_the_spread_over_a_split_is_that_of_one_batch_of_all(sizes):
    generator = torch.Generator().manual_seed(0)
    states = 5 + torch.rand(3, 4, generator=generator) + 0.1 * torch.randn(7, 3, 4, generator=generator)
    running = RunningSpread()
    for part in states.split(sizes):
        running.add(part)
    assert running.spread() == pytest.approx(spread_across_batch(states).item(), rel=1e-5)
    torch.testing.assert_close(running.mean, states.double().mean(0))
    assert spread_across_batch(states).item() == pytest.approx((states.std(0).mean() / states.std()).item(), rel=1e-5)


def test_one_sample_has_no_spread_and_all_alike_have_none():
    running = RunningSpread()
    running.add(torch.rand(1, 2, 3))
    assert math.isnan(running.spread())
    running = RunningSpread()
    running.add(torch.rand(2, 3).expand(4, 2, 3))
    assert running.spread() == pytest.approx(0.0, abs=1e-6)


def test_the_gain_of_a_head_is_above_the_head_before():
    results = [{"mAP": value} | {name: {"AP": value} for name in CLASSES} for value in (0.1, 0.4, 0.3)]
    rows = head_rows(["a", "b", "c"], results)
    assert [row["gain"] for row in rows] == [None, pytest.approx(0.3), pytest.approx(-0.1)]
    nothing = {"mAP": math.nan} | {name: {"AP": None} for name in CLASSES}
    assert [(row["mAP"], row["gain"]) for row in head_rows(["a", "b"], [nothing] * 2)] == [(None, None)] * 2


@pytest.fixture(scope="module")
def found_world(synthetic_world, caches, tmp_path_factory):
    """A shaken checkpoint, and a cache whose ground truth is what its first three queries say in the end."""
    folder = tmp_path_factory.mktemp("diagnose")
    checkpoint = save_shaken_checkpoint(folder / "model.pth")
    cache = GTCache.open(caches["train"])
    model, config, _ = load_detector(checkpoint, CPU, cache=cache)
    loader = build_loader(config, cache, in_batches(range(len(cache)), 4), synthetic_world)
    predictions, _ = predict(model, loader, CPU, None, config.pc_range)
    records = [cache[index] for index in range(len(cache))]
    made = [
        replace(record, labels=vectors.labels[:KEPT], pts_m=[pts.astype(np.float32) for pts in vectors.pts_m[:KEPT]])
        for record, vectors in ((record, predictions[record.sample_token]) for record in records)
    ]
    write_gt_cache(folder / "cache.safetensors", made, {name: cache.meta[name] for name in META})
    return folder


@pytest.fixture
def flags(found_world, synthetic_world):
    return ["--checkpoint", found_world / "model.pth", "--gt-cache", found_world / "cache.safetensors",
            "--dataroot", synthetic_world, "--num-workers", 0]  # fmt: skip


@pytest.mark.parametrize("protocol", ["maptr", "streammapnet"])
def test_the_last_head_scores_what_evaluate_says(flags, tmp_path, monkeypatch, capsys, protocol):
    run(diagnose, monkeypatch, *flags, "--protocol", protocol, "--json", tmp_path / "found.json")
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    run(evaluate, monkeypatch, *flags, "--protocol", protocol, "--json", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    first, *_, last = found["heads"]
    assert found["result"] == result and last["mAP"] == result["mAP"] > 0.1
    assert [last[name] for name in CLASSES] == [result[name]["AP"] for name in CLASSES]
    assert len(found["heads"]) == 3 and first["name"] == "LLM's states alone"
    assert first["mAP"] < last["mAP"] and sum(row["gain"] for row in found["heads"][1:]) == pytest.approx(
        last["mAP"] - first["mAP"]
    )
    assert "+ decoder layer 2" in printed and f"{last['mAP']:.3f}" in printed


def test_the_validation_of_a_training_scores_the_same(found_world, synthetic_world):
    cache = GTCache.open(found_world / "cache.safetensors")
    model, config, _ = load_detector(found_world / "model.pth", CPU, cache=cache)
    loader = build_loader(config, cache, in_batches(range(len(cache)), 3), synthetic_world)
    predictions, _ = predict(model, loader, CPU, None, config.pc_range)
    result, _ = score_split(model, loader, CPU, None, config.pc_range, False, Ranks(), SignalWatch())
    assert result == evaluate_vectors(predictions, ground_truth_of(cache)) and result["mAP"] > 0.1


def test_queries_and_scores_are_counted_over_the_split(flags, tmp_path, monkeypatch, capsys):
    run(diagnose, monkeypatch, *flags, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    use = found["queries"]
    assert use["match_counts"] == [8, 8, 8, 0, 0] and use["never_matched"] == 2 and use["ever_matched"] == 0.6
    assert use["effective_number"] == pytest.approx(KEPT)
    bins = found["calibration"]["bins"]
    assert sum(each["count"] for each in bins) == 8 * 5
    assert sum(each["precision"] * each["count"] for each in bins if each["count"]) == pytest.approx(8 * KEPT)
    printed = capsys.readouterr().out
    assert "ever the Hungarian match of a line: 60.0% (never: 2)" in printed
    medians = [band["median"] for row in found["offsets"] for band in row["bands"] if band["places"]]
    assert min(medians) == pytest.approx(0.0, abs=1e-4), "the true lines are the predicted ones"
    assert "drawn from the score of the best F1 on" in printed and " 0.00 (" in printed


def test_the_size_of_the_batches_changes_no_score(flags, tmp_path, monkeypatch):
    for size in (1, 3):
        run(diagnose, monkeypatch, *flags, "--batch-size", size, "--json", tmp_path / f"{size}.json")
    one, three = (json.loads((tmp_path / f"{size}.json").read_text()) for size in (1, 3))
    for part in ("heads", "mean_scene"):
        for row, other in zip(one[part], three[part], strict=True):
            assert row == pytest.approx(other, abs=1e-4)
    for row, index in zip(one["mean_scene"], (0, -1), strict=True):
        own = one["heads"][index]["mAP"]
        assert row["gain"] == pytest.approx(row["mAP"] - own)
    for name in SPREADS:  # of all samples, also where each comes alone
        assert one["spread"][name] == pytest.approx(three["spread"][name], rel=1e-3) and one["spread"][name] > 0.0


def test_the_mean_scene_leaves_the_llm_nothing_to_tell_samples_apart(found_world, synthetic_world):
    cache = GTCache.open(found_world / "cache.safetensors")
    model, config, _ = load_detector(found_world / "model.pth", CPU, cache=cache)
    loader = build_loader(config, cache, in_batches(range(len(cache)), 3), synthetic_world)
    seen = observe_heads(model, loader, CPU, None, config.pc_range)
    first, last = heads_without_scene(model, loader, CPU, None, config.pc_range, seen.scene_mean)

    def differ(head):
        pts = np.array([resample_lines(vectors.pts_m, 50) for vectors in head.values()])  # [8, I, 50, 2]
        return float(np.abs(pts - pts[0]).max())

    assert differ(first) < 1e-3 < 0.01 < differ(seen.heads[0])
    assert differ(last) > 0.01
    assert "read_scene" not in vars(model)
    again, measured = predict(model, loader, CPU, None, config.pc_range)
    assert {name: measured[name] for name in SPREADS} == seen.spread  # what the log of a training says
    for token, vectors in again.items():
        np.testing.assert_array_equal(vectors.scores, seen.heads[-1][token].scores)


def test_a_model_without_llm_says_so(synthetic_world, caches, tmp_path, monkeypatch, capsys):
    checkpoint = save_shaken_checkpoint(tmp_path / "model.pth", llm_path="none")
    run(diagnose, monkeypatch, "--checkpoint", checkpoint, "--gt-cache", caches["val"], "--dataroot", synthetic_world,
        "--num-workers", 0)  # fmt: skip
    assert "map queries alone (no LLM)" in capsys.readouterr().out


def test_a_split_without_ground_truth_has_no_scores(flags, found_world, tmp_path, monkeypatch, capsys):
    cache = GTCache.open(found_world / "cache.safetensors")
    empty = [replace(cache[i], labels=np.zeros(0, np.int64), pts_m=[]) for i in range(2)]
    write_gt_cache(tmp_path / "empty.safetensors", empty, {name: cache.meta[name] for name in META})
    given = ["--gt-cache", tmp_path / "empty.safetensors", "--json", tmp_path / "found.json"]
    run(diagnose, monkeypatch, *flags, *given)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["mAP"] for row in found["heads"]] == [None] * 3 and found["queries"]["never_matched"] == 5
    assert "no ground truth in any of its 2 samples" in capsys.readouterr().err


def test_processes_that_match_lines_load_no_torch():
    """They import the tool anew."""
    code = "import tools.diagnose, sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]


def test_bad_input_is_one_line_and_exit_code_2(flags, found_world, tmp_path, monkeypatch, capsys):
    write_gt_cache(tmp_path / "none.safetensors", [], META)
    wide = META | {"pc_range": list(PC_RANGES["100x50"])}
    write_gt_cache(tmp_path / "wide.safetensors", make_random_records(2, seed=1), wide)
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    (tmp_path / "file").touch()
    cases = [
        (["--checkpoint", tmp_path / "gone.pth"], "gone.pth"),
        (["--checkpoint", tmp_path / "broken.pth"], "broken.pth"),
        (["--gt-cache", tmp_path / "gone.safetensors"], "no such GT cache"),
        (["--gt-cache", tmp_path / "none.safetensors"], "no samples"),
        (["--gt-cache", tmp_path / "wide.safetensors"], "made for pc_range"),
        (["--dataroot", tmp_path / "gone"], "no such folder"),
        (["--batch-size", 0], "--batch-size 0"),
        (["--json", found_world / "model.pth"], "is what is read"),
        (["--json", tmp_path / "file" / "below.json"], "not a writable folder"),
    ]
    for given, expected in cases:
        monkeypatch.setattr(sys, "argv", ["diagnose.py", *map(str, [*flags, *given])])
        with pytest.raises(SystemExit) as end:
            run_cli(diagnose.main)
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and expected in error, error
