import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely

import evaluation.inference
from data.gt_cache import GTCache, write_gt_cache
from data.polylines import resample_lines
from data.synthetic.test_set import write_test_tables
from evaluation.chamfer_ap import evaluate
from evaluation.formats import read_predictions
from evaluation.geojson import MAP_ORIGINS, in_frame
from evaluation.min_scores import FALLBACK_SCORE
from evaluation.vectors import Vectors, ground_truth_of
from tests.micro import save_shaken_checkpoint
from tools import evaluate as evaluate_tool
from tools import predict as predict_tool
from utils.errors import UserError
from utils.frame import CLASSES, PC_RANGES

ROOT = Path(__file__).resolve().parents[1]
NUM_INSTANCES = 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best_model.pth"
    # So many queries that some are of each class, however the noise falls.
    return save_shaken_checkpoint(path, num_instances=NUM_INSTANCES)


@pytest.fixture
def run(monkeypatch, checkpoint, synthetic_world):
    """Runs a tool in this process: run(tool, flag, value, ...)."""

    def run_tool(tool, *flags: object) -> None:
        common = ["--checkpoint", checkpoint, "--dataroot", synthetic_world, "--num-workers", 0]
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, [*common, *flags])])
        tool.main()

    return run_tool


def lines_of(predictions: dict[str, Vectors]) -> dict[str, np.ndarray]:
    return {token: resample_lines(vectors.pts_m, 50) for token, vectors in predictions.items()}


@pytest.mark.parametrize("protocol", ["maptr", "streammapnet"])
def test_the_file_scores_to_the_last_digit_as_the_checkpoint_does(protocol, run, caches, tmp_path):
    """Against ground truth made from the predictions themselves, so that an untrained model has an AP."""
    cache, out = GTCache.open(caches["train"]), tmp_path / "predictions.json"
    run(predict_tool, "--gt-cache", caches["train"], "--output", out)
    rng, records = np.random.default_rng(0), []
    for record, vectors in zip(cache, read_predictions(out)[0].values(), strict=True):
        keep = rng.random(len(vectors)) < 0.7
        pts_m = [(pts + rng.normal(0, 0.8, pts.shape)).astype(np.float32) for pts in vectors.select(keep).pts_m]
        records.append(replace(record, labels=vectors.labels[keep], pts_m=pts_m))
    write_gt_cache(tmp_path / "gt.safetensors", records, cache.meta)

    run(predict_tool, "--gt-cache", tmp_path / "gt.safetensors", "--output", out)
    from_file = evaluate(read_predictions(out)[0], ground_truth_of(GTCache.open(tmp_path / "gt.safetensors")), protocol)
    run(evaluate_tool, "--gt-cache", tmp_path / "gt.safetensors", "--protocol", protocol, "--json",
        tmp_path / "result.json")
    direct = json.loads((tmp_path / "result.json").read_text())
    assert 0.05 < direct["mAP"] < 0.95, "else the comparison says nothing"
    assert from_file["mAP"] == direct["mAP"]
    for name, details in direct.pop("details").items():
        # Coordinates in the file are rounded to 0.1 mm.
        matched = from_file["details"][name].pop("matched_chamfer"), details.pop("matched_chamfer")
        assert matched[0] == pytest.approx(matched[1], abs=1e-4)
        assert from_file["details"][name] == details
        assert from_file[name] == direct[name]


def test_tables_give_the_samples_and_predictions_of_the_cache(run, caches, tmp_path):
    run(predict_tool, "--gt-cache", caches["val"], "--output", tmp_path / "cache.json")
    run(predict_tool, "--version", "v1.0-trainval", "--split", "val", "--output", tmp_path / "tables.json")
    assert (tmp_path / "cache.json").read_bytes() == (tmp_path / "tables.json").read_bytes()
    run(predict_tool, "--version", "v1.0-trainval", "--output", tmp_path / "all.json")
    by_split = [GTCache.open(caches[split]).sample_tokens for split in ("train", "val")]
    assert list(read_predictions(tmp_path / "all.json")[0]) == by_split[0] + by_split[1]


def make_test_set(world: Path, root: Path) -> Path:
    """The world as nuScenes publishes its test set: no annotations, scenes of no other split, no map expansion."""
    write_test_tables(world / "v1.0-trainval", root / "v1.0-test")
    (root / "maps").mkdir()
    for row in json.loads((root / "v1.0-test" / "map.json").read_text()):
        (root / row["filename"]).touch()  # the devkit wants the file to be there, nobody reads it
    (root / "samples").symlink_to(world / "samples")
    return root


def test_the_test_set_needs_neither_annotations_nor_maps(run, synthetic_world, tmp_path):
    dataroot = make_test_set(synthetic_world, tmp_path / "test")
    run(predict_tool, "--dataroot", dataroot, "--version", "v1.0-test", "--output", tmp_path / "test.json")
    run(predict_tool, "--version", "v1.0-trainval", "--output", tmp_path / "trainval.json")
    assert (tmp_path / "test.json").read_bytes() == (tmp_path / "trainval.json").read_bytes()
    with pytest.raises(UserError, match="none of its 3 scenes is in split val"):
        run(predict_tool, "--dataroot", dataroot, "--version", "v1.0-test", "--split", "val", "--output", "x")


def test_from_a_cache_it_runs_without_devkit_shapely_and_gpu(checkpoint, synthetic_world, caches, tmp_path):
    out = tmp_path / "deep" / "er" / "predictions.json"
    flags = ["--checkpoint", checkpoint, "--gt-cache", caches["val"], "--dataroot", synthetic_world, "--output", out]
    program = (
        "import runpy, sys\n"
        "sys.modules['nuscenes'] = sys.modules['shapely'] = None\n"  # importing them now fails
        "runpy.run_path('tools/predict.py', run_name='__main__')\n"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-c", program, *map(str, flags)], cwd=ROOT, env=environment,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    summary = rf"{out}: 4 samples, {4 * NUM_INSTANCES} lines, maptr, lidar frame, \d+\.\d s, \d+\.\d\d samples/s\n"
    assert re.fullmatch(summary, result.stdout), result.stdout
    assert len(read_predictions(out)[0]) == 4


def test_chosen_samples_are_predicted_once_in_the_order_asked_for(run, caches, tmp_path):
    tokens = GTCache.open(caches["train"]).sample_tokens
    run(predict_tool, "--gt-cache", caches["train"], "--output", tmp_path / "all.json")
    run(predict_tool, "--gt-cache", caches["train"], "--output", tmp_path / "few.json",
        "--sample-token", tokens[5], tokens[1], tokens[5])
    every, few = (lines_of(read_predictions(tmp_path / name)[0]) for name in ("all.json", "few.json"))
    assert list(few) == [tokens[5], tokens[1]]
    for token, lines in few.items():
        np.testing.assert_allclose(lines, every[token], atol=2e-4)  # another batch, another order of summation
    assert np.abs(few[tokens[5]] - every[tokens[1]]).max() > 1e-3, "else the samples could be exchanged"


def test_the_bar_counts_batches(run, caches, tmp_path, monkeypatch):
    bars, make_bar = [], evaluation.inference.progress_bar

    def watched(total: int, description: str):
        bars.append((description, total, make_bar(total, description)))
        return bars[-1][2]

    monkeypatch.setattr(evaluation.inference, "progress_bar", watched)
    run(predict_tool, "--gt-cache", caches["train"], "--batch-size", 3, "--output", tmp_path / "p.json")
    assert [bar[:2] for bar in bars] == [("predict", 3)]


def test_meta_says_what_the_numbers_are(run, caches, checkpoint, tmp_path):
    run(predict_tool, "--gt-cache", caches["val"], "--frame", "global", "--output", tmp_path / "p.json")
    meta = json.loads((tmp_path / "p.json").read_text())["meta"]
    assert (meta["frame"], meta["pc_range"]) == ("global", list(PC_RANGES["60x30"]))
    assert meta["min_scores"] == dict.fromkeys(CLASSES, 0.0)
    assert meta["checkpoint"] == f"{checkpoint.parent.name}/best_model.pth"
    assert meta["use_camera"] is True and meta["use_lidar"] is False


def test_the_threshold_leaves_out_what_scores_lower(run, caches, tmp_path):
    run(predict_tool, "--gt-cache", caches["val"], "--output", tmp_path / "all.json")
    every = read_predictions(tmp_path / "all.json")[0]
    threshold = float(np.median(np.concatenate([vectors.scores for vectors in every.values()])))
    run(predict_tool, "--gt-cache", caches["val"], "--score-threshold", threshold, "--output", tmp_path / "few.json")
    for token, vectors in read_predictions(tmp_path / "few.json")[0].items():
        np.testing.assert_array_equal(vectors.scores, every[token].scores[every[token].scores >= threshold])


def test_each_class_keeps_what_reaches_the_score_of_its_best_f1(run, caches, tmp_path):
    run(predict_tool, "--gt-cache", caches["val"], "--output", tmp_path / "all.json")
    every = read_predictions(tmp_path / "all.json")[0]
    scores, labels = (np.concatenate([getattr(v, name) for v in every.values()]) for name in ("scores", "labels"))
    boundary = float(np.median(scores[labels == CLASSES.index("boundary")]))
    wanted = {"divider": 0.0, "ped_crossing": None, "boundary": boundary}
    details = {name: {"best_f1": None if at is None else {"f1": 0.1, "score": at}} for name, at in wanted.items()}
    (tmp_path / "e.json").write_text(json.dumps({"mAP": 0.1, "details": details}))
    flags = ("--best-f1", tmp_path / "e.json", "--output", tmp_path / "few.json")
    run(predict_tool, "--gt-cache", caches["val"], *flags)
    least = np.array([0.0, FALLBACK_SCORE, boundary])
    for token, vectors in read_predictions(tmp_path / "few.json")[0].items():
        before = every[token]
        np.testing.assert_array_equal(vectors.scores, before.scores[before.scores >= least[before.labels]])
    meta = json.loads((tmp_path / "few.json").read_text())["meta"]
    assert meta["min_scores"] == {"divider": 0.0, "ped_crossing": FALLBACK_SCORE, "boundary": boundary}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no best F1 of divider; give a file of tools/evaluate.py --json"),
        ('{"mAP": 0.3}', "no best F1 of divider"),
        ('{"details": {"divider": {"best_f1": 0.3}}}', "divider's best F1 at a score of None, expected 0 to 1"),
        ('{"details": {"divider": {"best_f1": {"score": 3}}}}', "divider's best F1 at a score of 3, expected 0 to 1"),
    ],
)
def test_a_file_without_best_scores_is_refused(content, message, run, caches, tmp_path):
    (tmp_path / "e.json").write_text(content)
    flags = ("--best-f1", tmp_path / "e.json", "--output", tmp_path / "p.json")
    with pytest.raises(UserError, match=rf"e\.json: {message}"):
        run(predict_tool, "--gt-cache", caches["val"], *flags)
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(("fmt", "frame"), [("maptr", "lidar"), ("streammapnet", "ego"), ("geojson", "wgs84")])
def test_a_format_has_the_frame_its_readers_expect(fmt, frame, run, caches, tmp_path):
    out, cache = tmp_path / "out.json", GTCache.open(caches["val"])
    run(predict_tool, "--gt-cache", caches["val"], "--output", tmp_path / "lidar.json")
    run(predict_tool, "--gt-cache", caches["val"], "--format", fmt, "--output", out)
    assert json.loads(out.read_text())["meta"]["frame"] == frame
    if fmt != "geojson":
        lidar, found = read_predictions(tmp_path / "lidar.json")[0], read_predictions(out)[0]
        for record in cache:
            vectors = lidar[record.sample_token]
            np.testing.assert_array_equal(found[record.sample_token].labels, vectors.labels)
            for line, pts in zip(found[record.sample_token].pts_m, vectors.pts_m, strict=True):
                np.testing.assert_allclose(line, in_frame(pts, record, frame), atol=2e-4)


def test_geojson_of_the_tool_lies_in_the_city(run, caches, tmp_path):
    run(predict_tool, "--gt-cache", caches["train"], "--format", "geojson", "--output", tmp_path / "x.geojson")
    features = json.loads((tmp_path / "x.geojson").read_text())["features"]
    assert len(features) == 8 * NUM_INSTANCES
    for feature in features:
        lat_0, lon_0 = MAP_ORIGINS[feature["properties"]["city"]]
        pts = shapely.get_coordinates(shapely.geometry.shape(feature["geometry"]))
        assert np.all((pts - [lon_0, lat_0] > -0.01) & (pts - [lon_0, lat_0] < 0.05))


def test_a_city_without_known_origin_has_only_metres(run, synthetic_world, caches, tmp_path):
    cache, city = GTCache.open(caches["val"]), tmp_path / "city.safetensors"
    write_gt_cache(city, [replace(record, location="newtown") for record in cache], cache.meta)
    flags = ("--gt-cache", city, "--format", "geojson", "--output", tmp_path / "x.geojson")
    with pytest.raises(UserError, match="origin of newtown's map is unknown.*--frame global"):
        run(predict_tool, *flags, "--checkpoint", "gone.pth")  # said before a large model is loaded
    run(predict_tool, *flags, "--frame", "global")
    content = json.loads((tmp_path / "x.geojson").read_text())
    assert content["meta"]["frame"] == "global" and content["features"][0]["properties"]["city"] == "newtown"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gt-cache", "{val}", "--sample-token", "nothere"], "--sample-token nothere: not among the 4 samples"),
        (["--version", "v1.0-trainval", "--split", "val", "--sample-token", "{train_token}"], "not among the 4"),
        (["--gt-cache", "{val}", "--checkpoint", "gone.pth"], "gone.pth: no such checkpoint"),
        (["--gt-cache", "{val}", "--checkpoint", "{val}"], "not a checkpoint of this project"),
        (["--gt-cache", "{val}", "--checkpoint", "{wide}"], "made for pc_range .*, expected .*-50"),
        (["--gt-cache", "gone.safetensors"], "no such GT cache file"),
        (["--version", "v1.0-mini"], "v1.0-mini: no such folder, versions there: v1.0-trainval"),
        (["--version", "v1.0-trainval", "--dataroot", "gone"], "gone: no such folder"),
        (["--gt-cache", "{val}", "--dataroot", "gone"], "gone: no such folder; give the nuScenes folder"),
        (["--gt-cache", "{val}", "--split", "val"], "--split val: the samples are those of --gt-cache"),
        (["--gt-cache", "{val}", "--frame", "wgs84"], "--format maptr is in metres"),
        (["--gt-cache", "{val}", "--score-threshold", "30"], "--score-threshold 30.0: scores are 0 to 1"),
        (["--gt-cache", "{val}", "--batch-size", "0"], "--batch-size 0"),
        # Before a large model is loaded, hence with a checkpoint that is not there:
        (["--gt-cache", "{val}", "--dataroot", "{empty}", "--checkpoint", "gone.pth"], "CAM_FRONT.*no such image, sam"),
    ],
)
def test_mistakes_are_named_in_one_line_and_leave_the_old_file(flags, message, run, caches, tmp_path):
    words = {"val": caches["val"], "train_token": GTCache.open(caches["train"]).sample_tokens[0], "empty": tmp_path,
             "wide": tmp_path / "wide.pth"}
    if "{wide}" in flags:
        save_shaken_checkpoint(words["wide"], pc_range=PC_RANGES["100x50"])
    out = tmp_path / "out" / "predictions.json"
    out.parent.mkdir()
    out.write_text("old")
    with pytest.raises(UserError, match=message) as caught:
        run(predict_tool, *(flag.format(**words) for flag in flags), "--output", out)
    assert "\n" not in str(caught.value)
    assert out.read_text() == "old" and os.listdir(out.parent) == ["predictions.json"]


def test_an_output_that_cannot_be_made_is_said_before_anything_is_read(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a writable folder"):
        run(predict_tool, "--gt-cache", "gone.safetensors", "--output", tmp_path / "file" / "p.json")


def test_another_range_is_said_before_the_weights_are_loaded(run, caches, tmp_path, monkeypatch):
    save_shaken_checkpoint(tmp_path / "wide.pth", pc_range=PC_RANGES["100x50"])
    monkeypatch.setattr(evaluation.inference, "build_detector", None)
    with pytest.raises(UserError, match="made for pc_range"):
        flags = ("--gt-cache", caches["val"], "--output", tmp_path / "p.json")
        run(predict_tool, *flags, "--checkpoint", tmp_path / "wide.pth")


def test_an_image_broken_on_the_way_leaves_no_file(run, synthetic_world, caches, tmp_path):
    (tmp_path / "samples").mkdir()
    for folder in (synthetic_world / "samples").iterdir():
        (tmp_path / "samples" / folder.name).symlink_to(folder)
    broken = tmp_path / GTCache.open(caches["val"])[3].image_paths[0]
    broken.parent.unlink()
    broken.parent.mkdir()
    for image in (synthetic_world / "samples" / "CAM_FRONT").iterdir():
        (broken.parent / image.name).symlink_to(image)
    broken.unlink()
    broken.write_bytes(b"no jpeg")
    with pytest.raises(UserError, match=f"{broken}: not a whole JPEG"):
        run(predict_tool, "--gt-cache", caches["val"], "--dataroot", tmp_path, "--batch-size", 1,
            "--output", tmp_path / "out" / "p.json")
    assert not (tmp_path / "out").exists()


def test_a_cache_and_a_version_together_are_refused(run, caches, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(predict_tool, "--gt-cache", caches["val"], "--version", "v1.0-mini", "--output", tmp_path / "p.json")
    assert caught.value.code == 2 and "not allowed with argument" in capsys.readouterr().err
