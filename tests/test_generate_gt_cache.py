import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data.geometry import pose_matrix, without_roll_and_pitch
from data.gt_cache import GTCache
from data.nuscenes_reader import load_tables, read_records
from tests.generating import generate, run_main
from tests.reference import REFERENCE, needs_reference
from utils.frame import CAMERAS, PC_RANGES

PARITY = REFERENCE / "gt_parity"
REAL = REFERENCE / "real_sample"


def check_gt(expected, actual, *flags):
    """The reference checker's last line; it must pass."""
    done = subprocess.run(
        [sys.executable, REFERENCE / "check_gt.py", expected, actual, *flags], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def parity_split(tmp_path_factory):
    """Caches and exports of gt_parity's two splits, train made by this process, val by two workers."""
    return make_parity_split(tmp_path_factory.mktemp("parity"), "maptr")


def make_parity_split(folder, gt_style):
    common = ["--dataroot", PARITY, "--version", "v1.0-mini", "--skip-image-check", "--gt-style", gt_style]
    for split, workers in (("train", 0), ("val", 2)):
        outputs = ["--output", folder / f"{split}.safetensors", "--export-json", folder / f"{split}.json"]
        code, _, error = generate("--split", split, *common, *outputs, "--num-workers", workers)
        assert code == 0, error
    return folder


def both_splits(folder):
    """The exports of the two splits in one file."""
    merged = {}
    for split in ("train", "val"):
        merged.update(json.loads((folder / f"{split}.json").read_text()))
    (folder / "actual.json").write_text(json.dumps(merged))
    return folder / "actual.json"


@needs_reference
def test_ground_truth_agrees_with_maptr(parity_split):
    assert "100.0000 % of" in check_gt(PARITY / "expected_maptr.json", both_splits(parity_split))


@needs_reference
def test_ground_truth_agrees_with_streammapnet(tmp_path):
    """In the ego frame."""
    actual = both_splits(make_parity_split(tmp_path, "streammapnet"))
    assert "100.0000 % of" in check_gt(PARITY / "expected_streammapnet.json", actual)
    cache = GTCache.open(tmp_path / "val.safetensors")
    cache.require(gt_style="streammapnet")
    exported = json.loads(actual.read_text())
    for record in cache:
        lidar2ego = np.linalg.inv(record.ego2global) @ record.lidar2global
        assert 0.8 < np.linalg.norm(lidar2ego[:2, 3]) < 1.1  # the LiDAR sits about 0.94 m ahead
        lines = [line for name in exported[record.sample_token].values() for line in name]
        for pts, line in zip(record.pts_m, lines, strict=True):
            in_ego = pts @ lidar2ego[:2, :2].T + lidar2ego[:2, 3]
            np.testing.assert_allclose(in_ego, line, atol=1e-4)


@needs_reference
def test_cache_holds_what_the_export_says(parity_split):
    cache = GTCache.open(parity_split / "val.safetensors")
    cache.verify()
    cache.require(split="val", version="v1.0-mini", pc_range=PC_RANGES["60x30"], gt_style="maptr")
    exported = json.loads((parity_split / "val.json").read_text())
    assert cache.sample_tokens == list(exported)
    for record in cache:
        lines = [line for name in exported[record.sample_token].values() for line in name]
        assert len(record.pts_m) == len(lines) > 0
        for pts, line in zip(record.pts_m, lines, strict=True):
            np.testing.assert_array_equal(pts, np.array(line, np.float32))


@needs_reference
def test_the_number_of_workers_does_not_change_a_byte(parity_split, tmp_path):
    code, _, error = generate(
        *("--split", "mini_val", "--dataroot", PARITY, "--version", "v1.0-mini", "--skip-image-check"),
        *("--output", tmp_path / "again", "--num-workers", 0),
    )
    assert code == 0, error
    assert (tmp_path / "again").read_bytes() == (parity_split / "val.safetensors").read_bytes()


@needs_reference
def test_a_real_sample_with_defaults_from_the_environment(tmp_path):
    root = tmp_path / "nuscenes"
    shutil.copytree(REAL, root, copy_function=os.symlink)
    code, out, error = generate(
        *("--split", "train", "--version", "v1.0-mini", "--export-json", tmp_path / "real.json"),
        NUSCENES_DATAROOT=str(root),
    )
    assert code == 0, error
    assert "1 samples, 4 divider, 0 ped_crossing, 4 boundary" in out
    assert "singapore-onenorth: 2 self-crossing polygons left out\n  ped_crossing 66abfeac-448c-8f65-7b40-" in out
    assert error.startswith("warning: no ped_crossing at all in singapore-onenorth (1 samples); ")
    assert len(error.splitlines()) == 1
    assert "100.0000 % of" in check_gt(REAL / "expected_maptr.json", tmp_path / "real.json")
    cache = GTCache.open(root / "gt_cache" / "v1.0-mini_mini_train_60x30.safetensors")
    record = cache[cache.index_of("ca9a282c9e77460f8360f564131a8af5")]
    assert (record.scene_name, record.location) == ("scene-0061", "singapore-onenorth")
    assert np.all(record.image_sizes == [1600, 900])
    assert [path.split("/")[1] for path in record.image_paths] == list(CAMERAS)
    assert -2.0 < record.ground_z < -1.7


@needs_reference
def test_cameras_are_placed_by_their_own_ego_poses():
    """Against plain matrix products from the tables, one camera at a time."""
    nusc = load_tables(REAL, "v1.0-mini")
    (record,) = read_records(nusc, "mini_train")
    sample = nusc.get("sample", record.sample_token)

    def sensor_to_global(channel):
        reading = nusc.get("sample_data", sample["data"][channel])
        ego = nusc.get("ego_pose", reading["ego_pose_token"])
        mount = nusc.get("calibrated_sensor", reading["calibrated_sensor_token"])
        ego2global = pose_matrix(ego["translation"], ego["rotation"])
        return ego2global @ pose_matrix(mount["translation"], mount["rotation"]), mount["camera_intrinsic"]

    level = without_roll_and_pitch(sensor_to_global("LIDAR_TOP")[0])
    np.testing.assert_allclose(record.lidar2global, level)
    for v, channel in enumerate(CAMERAS):
        camera2global, intrinsic = sensor_to_global(channel)
        np.testing.assert_allclose(record.lidar2global @ record.cam2lidar[v], camera2global, atol=1e-9)
        np.testing.assert_array_equal(record.camera_intrinsic[v], intrinsic)
    forward = record.cam2lidar[:, :2, 2]  # where each camera looks, x right and y forward
    yaw = np.rad2deg(np.arctan2(-forward[:, 0], forward[:, 1]))
    np.testing.assert_allclose(np.abs(yaw), [0, 55, 55, 180, 110, 110], atol=4)
    assert yaw[1] < 0 < yaw[2] and yaw[4] > 0 > yaw[5]  # right, left, left, right


def test_geographic_splits_take_their_scenes(synthetic_world, tmp_path, monkeypatch):
    """scene-0001 is in geographic_val; scene-0002, and scene-0003 of the official val, in geographic_train."""
    scenes = {}
    for split in ("geographic_train", "geographic_val"):
        output = tmp_path / split
        run_main(monkeypatch, "--split", split, "--dataroot", synthetic_world, "--output", output)
        scenes[split] = GTCache.open(output).meta["scenes"]
    assert scenes == {"geographic_train": ["scene-0002", "scene-0003"], "geographic_val": ["scene-0001"]}


def test_the_longer_range_makes_a_cache_of_its_own(synthetic_world, tmp_path, monkeypatch, capsys):
    output = tmp_path / "cache"
    run_main(
        *(monkeypatch, "--split", "train", "--dataroot", synthetic_world, "--output", output),
        *("--pc-range", "100x50", "--num-workers", 1),
    )
    cache = GTCache.open(output)
    cache.require(split="train", version="v1.0-trainval", pc_range=PC_RANGES["100x50"])
    assert set(cache.meta["scenes"]) == {"scene-0001", "scene-0002"} and len(cache) == 8
    reach = max(np.abs(pts[:, 1]).max() for record in cache for pts in record.pts_m)
    assert 45 < reach <= 50.2
    assert f"{output}: 8 samples, " in capsys.readouterr().out
