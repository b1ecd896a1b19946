"""The report of a run: what the page says is what was measured, it needs no other file, and it runs nothing."""

import base64
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models.flags
import tools.report
import train_map_detection
from data.gt_cache import GTCache
from evaluation.chamfer_ap import evaluate
from evaluation.report.page import render_report
from evaluation.report.run_folder import read_run
from evaluation.vectors import Vectors, ground_truth_of
from tests.micro import micro_config
from utils.errors import UserError
from utils.frame import CLASSES

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags with their attributes, the cells of tables by caption, and the text of a page whose tags must balance."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._open: list[str] = []
        self._cell, self._caption, self._rows = "", "", []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self._rows.append([])
        if tag == "table":
            self._rows = []
        if tag in ("td", "th", "caption"):
            self._cell = ""

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "caption":
            self._caption = self._cell
        elif tag in ("td", "th"):
            self._rows[-1].append(self._cell)
        elif tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self._cell += data
            self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    def table(self, start: str) -> list[list[str]]:
        (found,) = [rows for caption, rows in self.tables.items() if caption.startswith(start)]
        return found


def check_self_contained(html: str, page: Page) -> None:
    """Nothing is fetched and nothing runs."""
    assert "://" not in html and "@import" not in html and "url(" not in html
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "data"):
                assert value.startswith(("data:image/", "#")), (tag, name, value[:40])
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


@pytest.fixture(scope="module")
def run(tmp_path_factory, synthetic_world, caches) -> Path:
    """A run of the micro model over two epochs of the tiny world, checkpoints and all."""
    out = tmp_path_factory.mktemp("runs") / "map_detection_stage2_20260102_030405"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.flags, "PRESETS", {"tiny": micro_config()})
        patch.setattr(sys, "argv", ["train_map_detection.py", "--preset", "tiny", "--dataroot", str(synthetic_world),
                                    "--epochs", "2", "--warmup-steps", "1", "--num-workers", "0", "--log-interval", "1",
                                    "--eval-untrained",
                                    "--output-dir", str(out)])
        train_map_detection.main()
    return out


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """The run's text files in a folder of their own, without checkpoints."""
    folder = tmp_path / run.name
    folder.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, folder)
    return folder


def make_report(monkeypatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", "--num-workers", "0", *map(str, flags)])
    tools.report.main()


def noisy(ground_truth: dict[str, Vectors]) -> dict[str, Vectors]:
    """Predictions near the ground truth, with doubles far away, at random scores."""
    rng = np.random.default_rng(0)
    predictions = {}
    for token, truth in ground_truth.items():
        pts = [line + rng.normal(0, 0.6, 2) for line in truth.pts_m] + [line + 7.0 for line in truth.pts_m]
        predictions[token] = Vectors(np.tile(truth.labels, 2), pts, rng.uniform(0, 1, len(pts)).astype(np.float32))
    return predictions


@pytest.mark.parametrize("protocol", ["maptr", "streammapnet"])
def test_the_page_shows_what_evaluate_measures_and_stands_alone(protocol, run, caches, tmp_path, monkeypatch, capsys):
    truth = ground_truth_of(GTCache.open(caches["val"]))
    real_predict = tools.report.predict_samples

    def predict(*args, **kwargs):
        predictions, *rest = real_predict(*args, **kwargs)
        assert predictions.keys() == truth.keys()
        return noisy(truth), *rest

    monkeypatch.setattr(tools.report, "predict_samples", predict)
    out = tmp_path / "page.html"
    make_report(monkeypatch, "--run", run, "--output", out, "--protocol", protocol)
    html = out.read_text()
    page = Page(html)
    check_self_contained(html, page)
    assert html.startswith("<!DOCTYPE html>") and page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")

    expected = evaluate(noisy(truth), truth, protocol)
    assert 0.1 < expected["mAP"] < 0.9, "figures that could not come about by chance"
    columns = ["AP@0.5", "AP@1.0", "AP@1.5", "AP"]
    shown = [[name, *(f"{expected[name][column]:.3f}" for column in columns)] for name in CLASSES]
    assert page.table(f"Chamfer AP, protocol {protocol}") == [
        ["class", *columns], *shown, ["mAP", "", "", "", f"{expected['mAP']:.3f}"]
    ]  # fmt: skip
    for row, name in zip(list(zip(*page.table("At 1.5 m"), strict=True))[1:], CLASSES, strict=True):
        details = expected["details"][name]
        assert row[:4] == (name, str(details["num_gt"]), str(details["num_pred"]), f"{details['recall']:.3f}")
        assert row[5:7] == (f"{details['best_f1']['f1']:.3f}", f"{details['best_f1']['threshold']:.3f}")
    assert f"mAP {expected['mAP']:.3f} on 4 samples" in capsys.readouterr().out
    settings = json.loads((run / "config.json").read_text())
    assert settings["started"][:16].replace("T", " ") in page.text and settings["commit"][:12] in page.text
    assert "2 of 2 epochs, 4 steps" in page.text and "8 training and 4 validation samples" in page.text
    assert "best_model.pth on 4 samples" in page.text and "Not evaluated" not in page.text
    assert "other ground truth" not in page.text

    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels)), "no level is left out"
    images = page.all("img")
    assert len(images) == 3 * 5, "best, median and worst of four samples: one each, two maps and three cameras"
    for image in images:
        assert image["alt"]
        content = base64.b64decode(image["src"].split(",", 1)[1])
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.size == (int(image["width"]), int(image["height"]))
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 3
    for chart in page.all("svg"):
        assert chart.get("aria-hidden") == "true" or chart["role"] == "img" and chart["aria-label"]
    assert len(html) < 2e6


def test_other_ground_truth_than_the_runs_is_pointed_out(run, caches, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    make_report(monkeypatch, "--run", run, "--gt-cache", caches["train"], "--output", out, "--gallery", 0)
    assert "on other ground truth than the run was validated on" in Page(out.read_text()).text


def test_a_run_of_an_earlier_version_says_what_it_has_not_recorded(copy):
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({name: settings[name] for name in ("args", "model_config")}))
    text = Page(render_report(read_run(copy), None, "", {})).text
    assert "2026-01-02 03:04" in text, "as the folder's name says"
    assert re.search(r"Commit\s*not recorded", text) and re.search(r"Machine\s*not recorded", text)


def test_a_run_without_checkpoint_still_shows_its_training(copy, monkeypatch, capsys):
    make_report(monkeypatch, "--run", copy)
    html = (copy / "report.html").read_text()
    page = Page(html)
    check_self_contained(html, page)
    assert "the run's folder holds no checkpoint" in page.text
    assert "no checkpoint" in capsys.readouterr().out
    run = read_run(copy)
    best = max(record["result"]["mAP"] for record in run.val)
    assert page.table("Chamfer AP")[-1][-1] == f"{best:.3f}"
    (total,) = re.findall(r"<figcaption>Total loss</figcaption>.*?</figure>", html)
    (points,) = re.findall(r'points="([^"]*)"', total)
    assert len(points.split()) == len(run.train) == 4
    (lr,) = re.findall(r"<figcaption>Learning rates</figcaption>.*?</figure>", html)
    assert lr.count('<g class="part-0"><polyline') == 2 and 'class="part-2"' not in lr, "1e-5 once and 1e-4 twice"
    assert "queries, decoder" in lr and not page.all("img")


def test_what_is_missing_is_said_and_what_is_named_must_be_there(run, copy, tmp_path, monkeypatch):
    shutil.copy(run / "best_model.pth", copy)
    settings = json.loads((copy / "config.json").read_text())
    settings["args"]["dataroot"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("NUSCENES_DATAROOT", str(tmp_path / "elsewhere"))
    make_report(monkeypatch, "--run", copy)
    assert f"no ground-truth cache at {tmp_path / 'elsewhere'}" in (copy / "report.html").read_text()
    with pytest.raises(UserError, match="no such GT cache"):
        make_report(monkeypatch, "--run", copy, "--gt-cache", tmp_path / "no.safetensors", "--dataroot", tmp_path)
    with pytest.raises(UserError, match="no such checkpoint"):
        make_report(monkeypatch, "--run", run, "--checkpoint", tmp_path / "no.pth")
    with pytest.raises(UserError, match="--gallery: 99"):
        make_report(monkeypatch, "--run", run, "--gallery", 99)
    with pytest.raises(UserError, match="not a writable folder"):  # before the checkpoint is read
        output = copy / "config.json" / "report.html"
        make_report(monkeypatch, "--run", run, "--checkpoint", tmp_path / "no.pth", "--output", output)
    with pytest.raises(UserError, match="--no-evaluation --checkpoint"):
        make_report(monkeypatch, "--run", run, "--no-evaluation", "--checkpoint", "c.pth")


def test_lines_of_a_killed_run_are_passed_over_and_counted(copy):
    path = copy / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines)[:-30])
    run = read_run(copy)
    assert run.unreadable == [len(lines)] and len(run.val) == 2
    page = Page(render_report(run, None, "Not evaluated.", {}))
    assert f"1 broken line of metrics.jsonl passed over (line {len(lines)})" in page.text
    assert "The run is not finished: 1 of 2 epochs" in page.text

    # Killed within a line at step 4 and resumed from epoch 1: the first line of the resumed run sticks to the half one.
    halves = [*lines[:5], lines[5][:40] + lines[4], *lines[5:]]
    path.write_text("\n".join(halves) + "\n")
    run = read_run(copy)
    assert run.unreadable == [6] and run.superseded == 0 and [r["step"] for r in run.train] == [1, 2, 3, 4]
    # Resumed from epoch 1 (step 2), killed after step 4 or after its validation; the last with a longer log interval.
    for resumed in ([*lines[:6], *lines[4:]], [*lines, *lines[5:]]):
        path.write_text("\n".join(resumed) + "\n")
        run = read_run(copy)
        assert [r["step"] for r in run.train] == [1, 2, 3, 4] and run.superseded == 2
        assert [r["step"] for r in run.val] == [0, 2, 4]
    assert "2 records of metrics.jsonl left out" in Page(render_report(run, None, "", {})).text


def test_epochs_that_stand_are_kept_where_a_resumption_counts_steps_anew(copy):
    """Two epochs of 100 steps, stopped at step 250; with twice the global batch it goes on from step 100."""
    path = copy / "metrics.jsonl"
    result = next(json.loads(line)["result"] for line in path.read_text().splitlines() if '"val"' in line)
    places = [("train", 1, 100), ("val", 1, 100), ("train", 2, 200), ("val", 2, 200), ("train", 3, 250),
              ("train", 3, 110), ("train", 3, 150), ("val", 3, 150)]
    path.write_text("".join(
        json.dumps({"kind": kind, "epoch": epoch, "step": step, "result": result | {"mAP": 1 / epoch}}) + "\n"
        for kind, epoch, step in places
    ))
    run = read_run(copy)
    assert [(record["epoch"], record["step"]) for record in run.train] == [(1, 100), (2, 200), (3, 110), (3, 150)]
    assert [record["epoch"] for record in run.val] == [1, 2, 3] and run.superseded == 1


def test_a_validation_without_ground_truth_is_no_broken_line(copy):
    path = copy / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["kind"] == "val":
            record["result"]["mAP"] = None
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    run = read_run(copy)
    assert not run.unreadable and len(run.val) == 3 and run.best_val() is None
    text = Page(render_report(run, None, "Not evaluated.", {})).text
    assert "2 of 2 epochs" in text and "has not validated yet" not in text


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("config.json", None, "config.json: No such file"),
        ("metrics.jsonl", None, "metrics.jsonl: No such file"),
        ("config.json", "{", "config.json: not JSON"),
        ("config.json", "[1]", 'config.json: no "args"'),
        ("metrics.jsonl", "", "metrics.jsonl: no whole record"),
        ("metrics.jsonl", "\x00\xff\n3\n[]\n{}\n", "metrics.jsonl: no whole record"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(name, content, words, copy):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content, "latin-1")
    with pytest.raises(UserError, match=re.escape(words)) as error:
        read_run(copy)
    assert "\n" not in str(error.value) and ";" in str(error.value)
    assert str(error.value).count(name) == 1, "one message, not one within another"
    with pytest.raises(UserError, match="no such folder"):
        read_run(copy / "nowhere")


def test_hostile_names_stay_text(copy):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>\'&lt;'
    folder = copy.parent / "<b onclick=alert(3)>&amp;"
    copy.rename(folder)
    settings = json.loads((folder / "config.json").read_text())
    for key in ("preset", "epochs", "version", "train_split", "gt_style", "grad_clip", "batch_size"):
        settings["args"][key] = evil
    settings[evil] = {evil: {"deep": {"deeper": {evil: [evil]}}}, "nothing": None}
    (folder / "config.json").write_text(json.dumps(settings))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "val":
            record["result"]["protocol"] = evil
            record["result"]["divider"]["AP"] = evil
            record["result"]["details"]["boundary"] = {"num_gt": evil, "best_f1": evil, "recall": 10**400}
        else:
            record |= {f"loss_{evil}": 1.0, "loss_cls_0": None, "loss_dir_1": 10**400}
            record |= {"grad_norm": evil, "lr": {evil: 1.0, "decoder": evil}}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    html = render_report(read_run(folder), None, evil, {evil: evil})
    page = Page(html)
    check_self_contained(html, page)
    assert not page.all("img") and not page.all("b") and "<b onclick=alert(3)>&amp;" in page.text
    assert page.text.count("<script>alert(1)</script>") > 10, "shown as what it is"
