import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.geometry import pose_matrix, without_roll_and_pitch
from data.gt_cache import write_gt_cache
from evaluation.formats import write_maptr_ground_truth, write_maptr_predictions, write_streammapnet_predictions
from evaluation.frames import lidar_to, to_lidar
from evaluation.vectors import Vectors, no_vectors
from tests.made_records import META, make_random_records
from tests.micro import save_shaken_checkpoint
from tests.reference import REFERENCE, needs_reference
from tools.evaluate import main
from utils.distributed import Ranks, batches_of_rank
from utils.errors import UserError
from utils.frame import PC_RANGES

ROOT = Path(__file__).resolve().parents[1]


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
    main()


def torchrun(processes, *flags):
    """The tool in several processes; its output.

    Each on one thread, as torchrun has it for several: another number of threads adds in another order.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    command += ["tools/evaluate.py", *flags]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def records():
    """Samples at poses of their own, so that the frames differ from one to the next."""
    rng = np.random.default_rng(0)
    moved = []
    for record in make_random_records(8, seed=4):
        half_yaw = rng.uniform(0, np.pi)
        lidar2global = pose_matrix(rng.uniform(0, 2000, 3), [np.cos(half_yaw), 0, 0, np.sin(half_yaw)])
        lidar2ego = pose_matrix([0.94, 0.0, 1.84], [np.sqrt(0.5), 0, 0, -np.sqrt(0.5)])
        ego2global = lidar2global @ np.linalg.inv(lidar2ego)
        level = [without_roll_and_pitch(pose) for pose in (lidar2global, ego2global)]
        pts_m = [pts * np.array([1, 2], np.float32) for pts in record.pts_m]  # as long ahead as the range
        moved.append(replace(record, lidar2global=level[0], ego2global=level[1], pts_m=pts_m))
    return moved


@pytest.fixture
def files(records, tmp_path):
    """A cache of these samples, its ground truth in MapTR's format, and perfect predictions in every frame."""
    write_gt_cache(tmp_path / "cache.safetensors", records, META)
    truth = {record.sample_token: Vectors(record.labels, record.pts_m) for record in records}
    write_maptr_ground_truth(tmp_path / "gt.json", truth)
    for frame in ("lidar", "ego", "global"):
        moved = {}
        for record in records:
            pts_m = [in_frame(pts, frame, record) for pts in record.pts_m]
            moved[record.sample_token] = Vectors(record.labels, pts_m, np.ones(len(pts_m)))
        meta = {} if frame == "ego" else {"frame": frame}  # StreamMapNet's own files say nothing
        write = write_streammapnet_predictions if frame == "ego" else write_maptr_predictions
        write(tmp_path / f"{frame}.json", moved, meta)
    return tmp_path


def in_frame(pts, frame, record):
    matrix = lidar_to(frame, record)
    return np.asarray(pts, np.float64) @ matrix[:2, :2].T + matrix[:2, 3]


@pytest.mark.parametrize("frame", ["lidar", "ego", "global"])
@pytest.mark.parametrize("protocol", ["maptr", "streammapnet"])
def test_a_perfect_prediction_scores_one_from_every_frame(files, monkeypatch, frame, protocol):
    flags = ["--predictions", files / f"{frame}.json", "--ground-truth", files / "cache.safetensors"]
    run(monkeypatch, *flags, "--protocol", protocol, "--json", files / "out.json")
    result = json.loads((files / "out.json").read_text())
    assert result["protocol"] == protocol and result["mAP"] == pytest.approx(1.0)
    assert result["details"]["divider"]["best_f1"]["f1"] == pytest.approx(1.0)
    assert result["details"]["divider"]["matched_chamfer"] < 1e-3


def test_a_cache_of_any_name_is_taken_for_what_it_is(files, monkeypatch):
    (files / "cache.safetensors").rename(files / "truth")
    run(monkeypatch, "--predictions", files / "ego.json", "--ground-truth", files / "truth", "--json", files / "o.json")
    assert json.loads((files / "o.json").read_text())["mAP"] == pytest.approx(1.0)


def test_going_to_the_lidar_frame_undoes_the_way_to_another(records):
    record = records[1]
    vectors = Vectors(record.labels, [in_frame(pts, "ego", record) for pts in record.pts_m])
    for pts, back in zip(record.pts_m, to_lidar(vectors, "ego", record).pts_m, strict=True):
        np.testing.assert_allclose(back, pts, atol=1e-6)
    np.testing.assert_allclose(in_frame(np.array([[0.0, 10.0]]), "ego", record), [[10.94, 0.0]], atol=1e-6)


@pytest.mark.parametrize("style", ["maptr", "streammapnet"])
def test_a_protocol_on_the_other_projects_ground_truth_is_pointed_out(files, records, monkeypatch, capsys, style):
    write_gt_cache(files / "of_style.safetensors", records, META | {"gt_style": style})
    flags = ["--predictions", files / "lidar.json", "--ground-truth", files / "of_style.safetensors"]
    for protocol in ("maptr", "streammapnet"):
        run(monkeypatch, *flags, "--protocol", protocol)
        warned = f"ground truth of style {style}; scores published for --protocol {protocol}" in capsys.readouterr().err
        assert warned == (style != protocol)


def test_predictions_of_another_frame_are_refused_where_the_ground_truth_cannot_tell(files, monkeypatch):
    for frame in ("ego", "global"):
        with pytest.raises(UserError, match=f"{frame}.json: .*% of the points lie outside 60x30 m.*ego frame"):
            run(monkeypatch, "--predictions", files / f"{frame}.json", "--ground-truth", files / "gt.json")


def test_streammapnet_predictions_beside_maptr_ground_truth_are_taken_as_they_are_with_a_warning(
    files, records, monkeypatch, capsys
):
    as_lidar = {r.sample_token: Vectors(r.labels, r.pts_m, np.ones(len(r.labels))) for r in records}
    write_streammapnet_predictions(files / "stream.json", as_lidar, {})
    flags = ["--ground-truth", files / "gt.json", "--json", files / "out.json"]
    run(monkeypatch, "--predictions", files / "stream.json", *flags)
    assert json.loads((files / "out.json").read_text())["mAP"] == pytest.approx(1.0)
    assert "stream.json: a file of its kind is in the ego frame" in capsys.readouterr().err


def test_the_range_decides_the_thresholds(files, monkeypatch):
    flags = ["--predictions", files / "lidar.json", "--ground-truth", files / "gt.json", "--json", files / "out.json"]
    run(monkeypatch, *flags, "--pc-range", "100x50")
    assert json.loads((files / "out.json").read_text())["thresholds"] == [1.0, 1.5, 2.0]


def scaled(records, factor):
    """The records' ground truth so many times as large, as of another range."""
    return {r.sample_token: Vectors(r.labels, [factor * pts for pts in r.pts_m]) for r in records}


def as_predictions(truth):
    return {token: Vectors(v.labels, v.pts_m, np.ones(len(v))) for token, v in truth.items()}


@pytest.fixture
def wide(files, records):
    """Ground truth and a cache of the same samples at 100x50."""
    truth = scaled(records, 5 / 3)
    write_maptr_ground_truth(files / "wide.json", truth)
    moved = [replace(record, pts_m=list(truth[record.sample_token].pts_m)) for record in records]
    write_gt_cache(files / "wide.safetensors", moved, META | {"pc_range": list(PC_RANGES["100x50"])})
    return files


def test_predictions_that_name_another_range_are_refused(wide, records, monkeypatch, capsys):
    predictions = as_predictions(scaled(records, 1))
    write_maptr_predictions(wide / "named.json", predictions, {"pc_range": list(PC_RANGES["60x30"])})
    message = "named.json: predicted for 60x30 m, expected the 100x50 of the ground truth"
    for truth in (["wide.safetensors"], ["wide.json", "--pc-range", "100x50"], ["gt.json", "--pc-range", "100x50"]):
        with pytest.raises(UserError, match=message):
            run(monkeypatch, "--predictions", wide / "named.json", "--ground-truth", wide / truth[0], *truth[1:])
    with pytest.raises(UserError, match=r"wide\.json: .*% of the points lie outside 60x30 m.*give --pc-range 100x50"):
        run(monkeypatch, "--predictions", wide / "named.json", "--ground-truth", wide / "wide.json")
    for truth in ("cache.safetensors", "gt.json"):
        run(monkeypatch, "--predictions", wide / "named.json", "--ground-truth", wide / truth)
    assert capsys.readouterr().err == ""
    run(monkeypatch, "--predictions", wide / "lidar.json", "--ground-truth", wide / "wide.safetensors")
    assert "lidar.json: all of it lies within 60x30 m, the ground truth fills 100x50" in capsys.readouterr().err


def test_the_range_is_that_of_the_predictions_file_unless_it_is_given(wide, records, monkeypatch):
    write_maptr_predictions(
        wide / "named.json", as_predictions(scaled(records, 5 / 3)), {"pc_range": list(PC_RANGES["100x50"])}
    )
    flags = ["--predictions", wide / "named.json", "--ground-truth", wide / "wide.json", "--json", wide / "out.json"]
    run(monkeypatch, *flags)
    result = json.loads((wide / "out.json").read_text())
    assert result["thresholds"] == [1.0, 1.5, 2.0] and result["mAP"] == pytest.approx(1.0)


def test_ground_truth_of_another_range_is_refused_or_said(wide, records, monkeypatch, capsys):
    write_maptr_predictions(wide / "p.json", as_predictions(scaled(records, 5 / 3)), {})
    flags = ["--predictions", wide / "p.json", "--ground-truth", wide / "wide.json"]
    for range_flags in ([], ["--pc-range", "60x30"]):
        with pytest.raises(UserError, match=r"wide\.json: .*% of the points lie outside 60x30 m.*--pc-range 100x50"):
            run(monkeypatch, *flags, *range_flags)
    run(monkeypatch, *flags, "--pc-range", "100x50")
    assert capsys.readouterr().err == ""
    run(monkeypatch, "--predictions", wide / "lidar.json", "--ground-truth", wide / "gt.json", "--pc-range", "100x50")
    assert "gt.json: all of it lies within 60x30 m, the thresholds are those of 100x50" in capsys.readouterr().err


def test_ground_truth_in_the_ego_frame_has_its_range_there(wide, records, monkeypatch, capsys):
    for name, factor in (("near", 1), ("far", 5 / 3)):
        ego = {
            r.sample_token: Vectors(r.labels, [in_frame(factor * pts, "ego", r) for pts in r.pts_m]) for r in records
        }
        write_maptr_ground_truth(wide / f"{name}.gt.json", ego)
        write_streammapnet_predictions(wide / f"{name}.json", as_predictions(ego), {})
    flags = {name: ["--predictions", wide / f"{name}.json", "--ground-truth", wide / f"{name}.gt.json", "--json",
                    wide / "out.json"] for name in ("near", "far")}
    for each in (flags["near"], [*flags["far"], "--pc-range", "100x50"]):
        run(monkeypatch, *each)
        assert json.loads((wide / "out.json").read_text())["mAP"] == pytest.approx(1.0)
        assert "lies within" not in capsys.readouterr().err
    with pytest.raises(UserError, match="give --pc-range 100x50"):
        run(monkeypatch, *flags["far"])


def test_a_range_beside_a_cache_of_another_is_refused(files, synthetic_world, caches, tmp_path, monkeypatch):
    flags = ["--predictions", files / "lidar.json", "--ground-truth", files / "cache.safetensors"]
    with pytest.raises(UserError, match=r"cache\.safetensors: made for pc_range .*, expected .*50"):
        run(monkeypatch, *flags, "--pc-range", "100x50")
    run(monkeypatch, *flags, "--pc-range", "60x30")
    with pytest.raises(UserError, match=r"made for pc_range .*, expected .*50"):
        run(monkeypatch, "--checkpoint", "gone.pth", "--gt-cache", caches["val"], "--pc-range", "100x50")


def test_a_split_without_any_ground_truth_is_said_and_has_no_map(files, records, monkeypatch, capsys):
    write_maptr_ground_truth(files / "empty.json", {record.sample_token: no_vectors(False) for record in records})
    flags = ["--predictions", files / "lidar.json", "--ground-truth", files / "empty.json", "--json", files / "o.json"]
    for protocol, expected in (("maptr", None), ("streammapnet", 0.0)):
        run(monkeypatch, *flags, "--protocol", protocol)
        assert json.loads((files / "o.json").read_text())["mAP"] == expected
        error = capsys.readouterr().err
        assert error.count("warning") == 1 and "empty.json: no ground truth in any of its 8 samples" in error


def test_outputs_are_tried_before_anything_is_read(tmp_path, monkeypatch):
    flags = ["--predictions", "gone.json", "--ground-truth", "gone.json"]
    (tmp_path / "file").touch()
    from_checkpoint = ["--checkpoint", "gone.pth", "--gt-cache", "gone"]
    for name, given in (("--json", flags), ("--json", from_checkpoint), ("--save-predictions", from_checkpoint)):
        with pytest.raises(UserError, match="not a writable folder"):
            run(monkeypatch, *given, name, tmp_path / "file" / "below.json")
    with pytest.raises(UserError, match="written twice"):
        run(monkeypatch, *from_checkpoint, "--json", tmp_path / "o", "--save-predictions", tmp_path / "o")
    with pytest.raises(UserError, match="--predictions gone.json has them already"):
        run(monkeypatch, *flags, "--save-predictions", tmp_path / "o")


def test_processes_that_match_lines_load_no_torch():
    """They import the tool anew."""
    code = "import tools.evaluate, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_samples_without_an_entry_are_counted_and_unknown_ones_refused(files, monkeypatch, capsys):
    content = json.loads((files / "lidar.json").read_text())
    dropped = content["results"].pop()
    (files / "few.json").write_text(json.dumps(content))
    run(monkeypatch, "--predictions", files / "few.json", "--ground-truth", files / "gt.json")
    assert "few.json: 1 of 8 samples have no entry and count as empty" in capsys.readouterr().err
    content["results"].append({**dropped, "sample_token": "stranger"})
    (files / "few.json").write_text(json.dumps(content))
    for truth in ("gt.json", "cache.safetensors"):
        with pytest.raises(UserError, match="stranger"):
            run(monkeypatch, "--predictions", files / "few.json", "--ground-truth", files / truth)


def test_batches_of_the_ranks_are_those_of_one_process():
    for samples, size, world in ((10, 4, 3), (3, 4, 2), (0, 2, 2), (7, 1, 3)):
        whole = batches_of_rank(samples, size, Ranks())
        parts = [batches_of_rank(samples, size, Ranks(rank, world)) for rank in range(world)]
        assert sorted(batch for part in parts for batch in part) == whole
        assert [index for batch in whole for index in batch] == list(range(samples))


@needs_reference
def test_three_ranks_score_files_as_one_process_does(tmp_path):
    parity = REFERENCE / "eval_parity"
    flags = ["--predictions", parity / "predictions.json", "--ground-truth", parity / "ground_truth.json"]
    outputs = [torchrun(n, *flags, "--json", tmp_path / f"{n}.json") for n in (1, 3)]
    assert outputs[0] == outputs[1] and "mAP" in outputs[0]
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "3.json").read_bytes()


def test_three_ranks_score_a_checkpoint_as_one_process_does(synthetic_world, caches, tmp_path):
    checkpoint = save_shaken_checkpoint(tmp_path / "model.pth")
    flags = ["--checkpoint", checkpoint, "--dataroot", synthetic_world, "--gt-cache", caches["train"]]
    flags += ["--batch-size", 3, "--num-workers", 0]
    for n in (1, 3):
        torchrun(n, *flags, "--json", tmp_path / f"{n}.json", "--save-predictions", tmp_path / f"{n}.predictions.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "3.json").read_bytes()
    details = json.loads((tmp_path / "1.json").read_text())["details"]
    assert sum(details[name]["num_pred"] for name in details) == 8 * 5  # each of the samples once, 5 instances each
    results = [json.loads((tmp_path / f"{n}.predictions.json").read_text())["results"] for n in (1, 3)]
    by_token = [{sample["sample_token"]: sample for sample in each} for each in results]
    assert by_token[0] == by_token[1] and len(by_token[0]) == 8


def test_a_checkpoint_of_other_classes_or_range_is_refused(synthetic_world, caches, tmp_path, monkeypatch):
    flags = ["--dataroot", synthetic_world, "--gt-cache", caches["val"], "--num-workers", 0]
    other = save_shaken_checkpoint(tmp_path / "classes.pth", classes=("divider", "ped_crossing", "stop_line"))
    with pytest.raises(UserError, match=r"classes\.pth: trained for the classes .*stop_line, expected .*boundary"):
        run(monkeypatch, "--checkpoint", other, *flags)
    other = save_shaken_checkpoint(tmp_path / "range.pth", pc_range=PC_RANGES["100x50"])
    with pytest.raises(UserError, match=r"made for pc_range .*expected"):
        run(monkeypatch, "--checkpoint", other, *flags)
