"""The contact sheets and animated scenes of tools/visualize.py: which samples, in which order, with which vectors."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.dataset import MapDetectionDataset, collate
from data.geometry import invert_rigid, transform_plane
from data.gt_cache import GTCache, write_gt_cache
from evaluation.formats import write_maptr_predictions, write_streammapnet_predictions
from evaluation.inference import load_detector, predict
from evaluation.line_offsets import length_f1
from evaluation.sample_f1 import SampleF1, rank_by_f1, sample_f1
from evaluation.vectors import Vectors, no_vectors
from tests.micro import save_shaken_checkpoint
from tools import visualize
from utils.errors import UserError
from utils.frame import PC_RANGES

FOUND = (0.8, 0.2, 1.0, 0.5)  # shares of the four samples' ground truth that are predicted
SHIFT = np.array([0.2, 0.0])  # metres from the ground truth to its predictions


@pytest.fixture
def cache(caches) -> GTCache:
    return GTCache.open(caches["val"])


@pytest.fixture
def predictions(cache, tmp_path) -> Path:
    """A file with shares of the ground truth, shifted, and below the score threshold a line that nothing matches."""
    by_token = {}
    for record, share in zip((cache[i] for i in range(4)), FOUND, strict=True):
        count = int(np.ceil(share * len(record.pts_m)))
        pts_m = [pts + SHIFT for pts in record.pts_m[:count]] + [np.array([[-14.0, 29.0], [14.0, 29.0]])]
        scores = np.array([0.9] * count + [0.1])
        by_token[record.sample_token] = Vectors(np.append(record.labels[:count], 1), pts_m, scores)
    write_maptr_predictions(tmp_path / "predictions.json", by_token, {})
    return tmp_path / "predictions.json"


@pytest.fixture
def run(monkeypatch, caches, synthetic_world):
    """Runs the tool in this process; what it hands to the drawing functions comes back."""
    handed = {"cells": [], "samples": []}

    def draw_contact_sheet(title, cells, pc_range):
        handed["cells"] = list(cells)
        return sheet(title, cells, pc_range)

    def draw_sample(record, images, truth, predicted, pc_range, layout=None, title=None):
        handed["samples"].append((record.sample_token, predicted, title))
        return Image.new("RGB", (32, 16), (0, 0, 50 * len(handed["samples"])))

    sheet = visualize.draw_contact_sheet
    monkeypatch.setattr(visualize, "draw_contact_sheet", draw_contact_sheet)
    monkeypatch.setattr(visualize, "draw_sample", draw_sample)

    def run_tool(*flags, path=caches["val"]):
        handed["cells"], handed["samples"] = [], []
        command = ["visualize.py", "--gt-cache", path, "--dataroot", synthetic_world, *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        visualize.main()
        return handed

    return run_tool


def test_sheets_of_the_best_and_the_worst(run, cache, predictions, tmp_path):
    tokens = [token[:8] for token in cache.sample_tokens]
    flags = ("--predictions", predictions, "--output", tmp_path / "a.png", "--sheet")
    best = run(*flags, "best")["cells"]
    assert [cell.caption[0][:8] for cell in best[:2]] == [tokens[2], tokens[0]]
    assert best[0].caption[1].startswith("F1 1.00:") and best[0].caption[1].endswith("0 missed, 0 false")
    truth, predicted = (vectors for _, vectors in best[0].panels)
    assert len(predicted) == len(truth) == len(cache[2].labels)  # without the line below the threshold
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.width > 800
    worst = run(*flags, "worst", "--count", 3)["cells"]
    assert [cell.caption[0][:8] for cell in worst] == [tokens[1], tokens[3], tokens[0]]
    some, again = ([cell.caption for cell in run(*flags, "random", "--count", 2)["cells"]] for _ in range(2))
    assert len(set(some)) == 2 and some == again


def test_figure_of_a_sample():
    lines = [np.array([[x, -20.0], [x, 20.0]]) for x in (-8.0, 0.0, 8.0)]
    truth = Vectors(np.array([0, 1, 2]), lines)
    near = [line + np.array([0.9, 0.0]) for line in lines]
    predicted = Vectors(np.array([0, 0, 1, 1]), [near[0], near[0], near[1], lines[2]], np.array([0.5, 0.6, 0.7, 0.8]))
    figure = sample_f1(predicted, truth)
    assert figure == SampleF1(true=2, false=2, missed=1) and figure.value == pytest.approx(4 / 7)
    beyond = Vectors(truth.labels, [line + np.array([1.1, 0.0]) for line in lines], np.ones(3))
    assert sample_f1(beyond, truth).value == 0.0
    assert sample_f1(no_vectors(scored=True), no_vectors(scored=False)).value is None

    scores = [SampleF1(1, 1, 0), SampleF1(0, 0, 0), SampleF1(3, 0, 0), SampleF1(5, 0, 0), SampleF1(0, 0, 4)]
    assert rank_by_f1(scores, best_first=True) == [3, 2, 0, 4]
    assert rank_by_f1(scores, best_first=False) == [4, 0, 3, 2]


@pytest.mark.parametrize(("suffix", "kind"), [(".webp", "WEBP"), (".GIF", "GIF")])
def test_a_scene_in_order_of_time(suffix, kind, run, cache, predictions, tmp_path):
    records = [cache[index] for index in (2, 0, 3, 1)]
    records.insert(2, replace(records[0], sample_token="e" * 32, scene_name="scene-0999"))
    meta = {key: cache.meta[key] for key in ("version", "split", "pc_range", "gt_style")}
    write_gt_cache(tmp_path / "mixed", records, meta)
    out = tmp_path / f"scene{suffix}"
    handed = run("--scene", cache[0].scene_name, "--predictions", predictions, "--fps", 5, "--output", out,
                 path=tmp_path / "mixed")
    assert [token for token, *_ in handed["samples"]] == cache.sample_tokens
    seconds = [float(title.split()[-2]) for *_, title in handed["samples"]]
    assert seconds[0] == 0.0 and np.all(np.diff(seconds) > 0.3)
    for (_, predicted, _), index in zip(handed["samples"], range(4), strict=True):
        np.testing.assert_allclose(predicted.pts_m[0], cache[index].pts_m[0] + SHIFT, atol=1e-3)
    with Image.open(out) as animation:
        assert (animation.format, animation.n_frames) == (kind, 4)


def test_vectors_in_the_ego_frame_are_moved_to_the_lidar(run, cache, tmp_path):
    in_ego = {}
    for record in (cache[i] for i in range(4)):
        lidar2ego = invert_rigid(record.ego2global) @ record.lidar2global
        pts_m = [transform_plane(pts, lidar2ego) for pts in record.pts_m]
        in_ego[record.sample_token] = Vectors(record.labels, pts_m, np.full(len(pts_m), 0.8))
    write_streammapnet_predictions(tmp_path / "p.json", in_ego, {})
    cells = run("--predictions", tmp_path / "p.json", "--sheet", "worst", "--output", tmp_path / "a.png")["cells"]
    assert [cell.caption[1][:7] for cell in cells] == ["F1 1.00"] * 4


def test_a_checkpoint_draws_what_its_predictions_draw(run, cache, synthetic_world, tmp_path):
    save_shaken_checkpoint(tmp_path / "c.pth")
    model, config, _ = load_detector(tmp_path / "c.pth", torch.device("cpu"))
    dataset = MapDetectionDataset(cache, synthetic_world, config.image_size, config.crop_top, config.num_points)
    loader = DataLoader(dataset, 4, collate_fn=collate)
    by_token, _ = predict(model, loader, torch.device("cpu"), None, config.pc_range)

    flags = ("--score-threshold", 0, "--output", tmp_path / "a.png")
    ((token, drawn, _),) = run("--checkpoint", tmp_path / "c.pth", "--index", 2, *flags)["samples"]
    assert token == cache.sample_tokens[2] and len(drawn) == config.num_instances
    np.testing.assert_allclose(drawn.scores, by_token[token].scores, atol=1e-5)
    for line, wanted in zip(drawn.pts_m, by_token[token].pts_m, strict=True):
        np.testing.assert_allclose(line, wanted, atol=1e-3)
    cells = run("--checkpoint", tmp_path / "c.pth", "--sheet", "random", "--count", 2, *flags)["cells"]
    assert len(cells) == 2 and all(len(cell.panels[1][1]) == config.num_instances for cell in cells)


def test_samples_without_an_entry_are_drawn_without_predictions(run, cache, predictions, tmp_path, capsys):
    full = visualize.read_predictions(predictions)[0]
    write_maptr_predictions(predictions, {cache.sample_tokens[2]: full[cache.sample_tokens[2]]}, {})
    cells = run("--predictions", predictions, "--sheet", "worst", "--output", tmp_path / "a.png")["cells"]
    assert [len(cell.panels[1][1]) > 0 for cell in cells] == [False, False, False, True]
    warning = capsys.readouterr().err
    assert "warning: 3 of 4 samples" in warning and cache.sample_tokens[0] in warning


def test_one_sample_says_how_far_its_lines_lie_from_the_true_ones(run, cache, predictions, tmp_path, capsys):
    flags = ("--index", 2, "--output", tmp_path / "a.png")
    run("--predictions", predictions, *flags)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(f"sample {cache.sample_tokens[2]}, 32x16 pixels")
    assert said[1].split() == "drawn line score median offset farthest within 0.1 m within 0.2 m".split()
    lines = len(cache[2].labels)
    assert said[2 + lines].split() == "true line length drawn within 0.5 m".split() and len(said) == 3 + 2 * lines
    offsets = [float(line.split()[2]) for line in said[2 : 2 + lines]]
    assert len(offsets) == lines  # without the line below the threshold
    assert max(offsets) == pytest.approx(np.hypot(*SHIFT), abs=0.01)  # of a line along the road; others' are shorter
    run(*flags)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_sample_in_the_middle_of_all_is_drawn(run, cache, tmp_path, capsys):
    lines = {}
    for index, share in enumerate((0.9, 0.1, 1.0, 0.6)):
        record = cache[index]
        count = int(np.ceil(share * len(record.pts_m)))
        lines[record.sample_token] = Vectors(record.labels[:count], record.pts_m[:count], np.full(count, 0.9))
    write_maptr_predictions(tmp_path / "p.json", lines, {})
    values = [length_f1(lines[token], Vectors(cache[i].labels, cache[i].pts_m)) for i, token in enumerate(lines)]
    middle = int(np.argsort(values)[1])
    flags = ("--predictions", tmp_path / "p.json", "--median", "--output", tmp_path / "a.png")
    ((token, drawn, _),) = run(*flags)["samples"]
    assert token == cache.sample_tokens[middle] and len(drawn) == len(lines[token])
    said = capsys.readouterr().out.splitlines()[0]
    assert said == (f"in the middle of 4 samples: {values[middle]:.2f} of drawn and true lines lie within 0.2 m of "
                    f"each other (from {min(values):.2f} to 1.00)")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--scene", "scene-9999", "--output", "a.webp"), "no scene 'scene-9999', expected one of its 1 scenes"),
        (("--scene", "scene-0003", "--output", "a.mp4"), "a.mp4, an animated image ends in .webp or .gif"),
        (("--output", "a.webp"), "a.webp, a picture ends in .png"),
        (("--sheet", "best", "--output", "a.png"), "--sheet best: no predictions"),
        (("--median", "--output", "a.png"), "--median: no predictions"),
        (("--count", "0", "--output", "a.png"), "--count: 0, expected 1 to 400"),
        (("--dataroot", "gone", "--output", "a.png"), "gone: no such folder.*give it with --dataroot"),
        (("--fps", "0", "--output", "a.png"), "--fps: 0.0, expected more than 0"),
        (("--seed", "-2", "--output", "a.png"), "--seed: -2, expected 0 or more"),
        (("--score-threshold", "30", "--output", "a.png"), "--score-threshold 30.0: scores are 0 to 1"),
    ],
)
def test_bad_flags(flags, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(*flags)
    assert not any(tmp_path.glob("a.*"))


def test_predictions_of_another_split_are_refused(run, caches, cache, predictions, tmp_path):
    for flags in (("--sheet", "best"), ("--index", 0)):
        with pytest.raises(UserError, match="none of its 4 sample tokens .* expected split train"):
            run("--predictions", predictions, *flags, "--output", tmp_path / "a.png", path=caches["train"])
    assert not (tmp_path / "a.png").exists()


def test_predictions_of_another_range_are_refused(run, cache, tmp_path):
    meta = {"pc_range": list(PC_RANGES["100x50"])}
    write_maptr_predictions(tmp_path / "wide.json", {cache.sample_tokens[0]: no_vectors(scored=True)}, meta)
    with pytest.raises(UserError, match="wide.json: predicted for 100x50 m, expected the 60x30"):
        run("--predictions", tmp_path / "wide.json", "--output", tmp_path / "a.png")


def test_an_output_that_cannot_be_made_is_said_before_anything_is_read(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a writable folder"):
        run("--output", tmp_path / "file" / "a.png", path=tmp_path / "gone.safetensors")
