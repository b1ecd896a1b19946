"""Inspection of a cache: every figure against a plain loop over its records, and coordinates that cannot be right."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from data.gt_cache import GTCache, write_gt_cache
from data.polylines import is_closed, line_length
from tests.made_records import META, make_random_records, make_record
from tools import inspect_gt
from tools.inspect_gt import LENGTH_EDGES, summarize_cache
from utils.errors import UserError
from utils.frame import CLASSES

RING = np.array([[0, 0], [4, 0], [4, 3], [0, 0]], np.float32)  # 12 m
LINE = np.array([[-14, -29], [-14, 29]], np.float32)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the tool in this process and returns what it printed."""

    def run_tool(path, *flags):
        monkeypatch.setattr(sys, "argv", ["inspect_gt.py", "--gt-cache", str(path), *map(str, flags)])
        inspect_gt.main()
        return capsys.readouterr().out

    return run_tool


def write(path, records, **changes) -> GTCache:
    write_gt_cache(path, records, META | changes)
    return GTCache.open(path)


def test_figures_equal_a_loop_over_the_records(tmp_path):
    records = make_random_records(60)
    there_and_back = RING[[0, 1, 0]]
    records[7] = make_record(7, np.array([1, 1, 0]), [RING, there_and_back, RING])
    cache = write(tmp_path / "cache", records)
    summary = summarize_cache(cache)
    assert (summary["num_samples"], summary["num_scenes"]) == (60, 20)
    assert summary["samples_by_city"] == {"boston-seaport": 30, "singapore-onenorth": 30}
    for label, name in enumerate(CLASSES):
        by_sample = [
            [pts for pts, own in zip(record.pts_m, record.labels, strict=True) if own == label] for record in records
        ]
        lines = [pts for sample in by_sample for pts in sample]
        lengths = [line_length(pts.astype(np.float64)) for pts in lines]
        figures = summary["classes"][name]
        assert figures["instances"] == len(lines)
        assert figures["mean_per_sample"] == pytest.approx(len(lines) / 60)
        assert figures["max_per_sample"] == max(map(len, by_sample))
        assert figures["samples_with_any"] == sum(len(sample) > 0 for sample in by_sample)
        assert figures["points"] == sum(map(len, lines))
        assert figures["ring_share"] == pytest.approx(np.mean([is_closed(pts) for pts in lines]))
        assert figures["length_histogram"] == np.histogram(lengths, LENGTH_EDGES)[0].tolist()
        expected = [min(lengths), np.median(lengths), max(lengths)]
        assert list(figures["length_m"].values()) == pytest.approx(expected, rel=1e-9)
    assert summary["classes"]["ped_crossing"]["ring_share"] > 0
    empty = [record.sample_token for record in records if not record.pts_m]
    assert summary["without_instances"] == {"samples": len(empty), "first": empty[0]}
    assert not any(warning["instances"] for warning in summary["warnings"].values())


def test_impossible_coordinates_are_counted_with_the_first_token(tmp_path, run):
    broken = LINE.copy()
    broken[1, 1] = np.nan
    far = LINE + np.array([-1.2, 0], np.float32)  # 0.2 m outside
    further = LINE + np.array([-2.0, 0], np.float32)  # 1 m outside
    records = [
        make_record(0, np.array([0, 0]), [LINE, far]),
        make_record(1, np.array([2, 2, 0]), [LINE, further, broken]),
        make_record(2, np.array([1, 1]), [np.array([[np.inf, 0], [0, 1]], np.float32), further]),
        make_record(3, np.array([0, 2]), [LINE[:1], RING]),
        make_record(4, np.array([1]), [LINE[:0]]),
    ]
    found = summarize_cache(write(tmp_path / "cache", records))
    warnings = {key: (warning["instances"], warning["first"]) for key, warning in found["warnings"].items()}
    assert warnings == {
        "too_short": (2, records[3].sample_token),
        "not_finite": (2, records[1].sample_token),
        "outside": (2, records[1].sample_token),
    }
    assert found["classes"]["divider"]["length_m"]["max"] == 58.0  # what is not finite has no length
    assert found["classes"]["boundary"]["ring_share"] == pytest.approx(1 / 3)
    text = run(tmp_path / "cache", "--output", tmp_path / "sheet.png")
    assert text.count("warning: 2 instances with ") == 3 and f"the first in sample {records[1].sample_token}" in text
    assert (tmp_path / "sheet.png").is_file()  # the lines that can be drawn are

    ego = summarize_cache(write(tmp_path / "ego", records, gt_style="streammapnet"))
    assert ego["warnings"]["outside"]["instances"] == 0  # its patch lies behind the LiDAR


def test_a_sheet_shows_each_sample_of_a_small_cache_once(tmp_path, run):
    records = [make_record(i, np.array([i % 3]), [LINE + np.array([3 * i, 0], np.float32)]) for i in range(4)]
    write(tmp_path / "cache", records)
    text = run(tmp_path / "cache", "--output", tmp_path / "a.png", "--json", tmp_path / "a.json", "--samples", 9)
    assert "digest" in text and "4 samples of 2 scenes in 2 cities" in text and "mini_train" in text
    assert json.loads((tmp_path / "a.json").read_text())["classes"]["divider"]["instances"] == 2
    sheet = np.asarray(Image.open(tmp_path / "a.png"), int)[160:]  # below heading and captions
    columns = []
    for colour in ((230, 159, 0), (86, 180, 233), (0, 158, 115)):
        columns.append(np.unique(np.nonzero(np.all(sheet == colour, axis=-1))[1]))
    first_and_last = np.split(columns[0], np.flatnonzero(np.diff(columns[0]) > 20) + 1)
    middles = [first_and_last[0].mean(), columns[1].mean(), columns[2].mean(), first_and_last[1].mean()]
    np.testing.assert_allclose(np.diff(middles), 204 + 18, atol=1.5)  # a cell further, and 3 m at 6 pixels


def test_the_seed_chooses_the_samples(tmp_path, run):
    write(tmp_path / "cache", make_random_records(40))
    pictures = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / "cache", "--output", tmp_path / f"{name}.png", "--samples", 4, "--seed", seed)
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_cache_without_samples_has_figures_but_no_picture(tmp_path, run):
    write(tmp_path / "cache", [])
    assert "0 samples of 0 scenes" in run(tmp_path / "cache")
    with pytest.raises(UserError, match="no samples, at least one is needed"):
        run(tmp_path / "cache", "--output", tmp_path / "a.png")


def test_what_the_maps_lost_and_what_a_city_lacks_is_said(tmp_path, run):
    """Of the two cities boston-seaport has the samples of even numbers."""
    records = [make_record(i, np.array([0, 2 * (i % 2)]), [LINE, LINE]) for i in range(4)]
    tokens = [f"{number:08d}-448c-8f65-7b40-623bb8ac84a6" for number in range(9)]
    invalid = {"boston-seaport": {"lane": tokens[:7], "ped_crossing": tokens[7:]}, "singapore-onenorth": {"lane": []}}
    cache = write(tmp_path / "cache", records, invalid_polygons=invalid)
    assert summarize_cache(cache)["absent_classes"] == {
        "divider": [], "ped_crossing": ["boston-seaport", "singapore-onenorth"], "boundary": ["boston-seaport"],
    }  # fmt: skip
    lines = run(tmp_path / "cache").splitlines()
    assert lines[-2:] == [
        "warning: no ped_crossing at all in boston-seaport (2 samples), singapore-onenorth (2 samples); "
        "see whether the map expansion is whole",
        "warning: no boundary at all in boston-seaport (2 samples); see whether the map expansion is whole",
    ]
    start = lines.index("boston-seaport: 9 self-crossing polygons left out")
    left_out = " ".join(line.strip() for line in lines[start + 1 : -2])
    assert left_out == f"lane {', '.join(tokens[:7])} ped_crossing {', '.join(tokens[7:])}"
    assert all(len(line) <= 120 for line in lines[start:-2])


def test_outputs_are_tried_before_the_work(tmp_path, run, monkeypatch):
    write(tmp_path / "cache", make_random_records(3))
    monkeypatch.setattr(inspect_gt, "summarize_cache", lambda _: pytest.fail("the work has begun"))
    with pytest.raises(UserError, match="cache/a.png: cannot be written"):
        run(tmp_path / "cache", "--output", tmp_path / "cache" / "a.png")
    with pytest.raises(UserError, match="a.png: is to be written twice"):
        run(tmp_path / "cache", "--output", tmp_path / "a.png", "--json", tmp_path / "a.png")


def test_bad_input(tmp_path, run):
    path = tmp_path / "cache"
    write(path, make_random_records(3))
    for flags, message in (
        (("--output", "sheet.jpg"), "sheet.jpg, a picture ends in .png"),
        (("--samples", 0), "--samples: 0, expected 1 to"),
        (("--seed", -1), "--seed: -1, expected 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            run(path, *flags)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="digest .* make it anew"):
        run(path)
    with pytest.raises(UserError, match="no such GT cache"):
        run(tmp_path / "nowhere")
