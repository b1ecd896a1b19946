"""What tools/generate_gt_cache.py refuses, in one line and without a change, and how it ends when it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data.gt_cache import GTCache
from tests.generating import ROOT, generate, run_main
from tests.made_records import make_random_records
from tools.generate_gt_cache import vectorize_records
from utils.errors import UserError


def without_folder(root):
    shutil.rmtree(root)


def without_version(root):
    (root / "v1.0-trainval").rename(root / "v1.0-test")


def without_table(root):
    (root / "v1.0-trainval" / "ego_pose.json").unlink()


def with_broken_table(root):
    (root / "v1.0-trainval" / "sample.json").write_text("[{")


def without_basemap(root):
    next((root / "maps").glob("*.png")).unlink()


def without_maps(root):
    shutil.rmtree(root / "maps" / "expansion")


def with_old_maps(root):
    for path in (root / "maps" / "expansion").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": "1.2"}))


def without_camera(root):
    path = root / "v1.0-trainval" / "sample_data.json"
    readings = json.loads(path.read_text())
    path.write_text(json.dumps([r for r in readings if "CAM_BACK_LEFT" not in r["filename"]]))


def without_images(root):
    shutil.rmtree(root / "samples" / "CAM_BACK")


@pytest.mark.parametrize(
    ("damage", "split", "message"),
    [
        (without_folder, "train", "bad: no such folder; .*--dataroot or NUSCENES_DATAROOT"),
        (without_version, "train", "v1.0-trainval: no such folder, versions there: v1.0-test; .*--version"),
        (without_table, "train", "v1.0-trainval/ego_pose.json: no such file, a nuScenes table .*; unpack"),
        (with_broken_table, "train", "v1.0-trainval/sample.json: not a nuScenes table, 2 bytes .*; unpack"),
        (without_basemap, "train", "v1.0-trainval: the tables cannot be read .*map mask .*; unpack"),
        (without_maps, "train", r"expansion/[a-z-]+\.json: no such map expansion, cities there: .*; unpack"),
        (with_old_maps, "train", "map expansion version 1.2, expected 1.3 or later; unpack"),
        (without_camera, "train", "sample [0-9a-f]{32} has no CAM_BACK_LEFT key frame"),
        (without_images, "val", r"samples/CAM_BACK/.*\.jpg: no such image, sample [0-9a-f]{32} needs it"),
        (lambda root: None, "mini_val", "none of its 3 scenes is in split mini_val; choose another --split"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(synthetic_world, tmp_path, monkeypatch, damage, split, message):
    root = tmp_path / "bad"
    shutil.copytree(synthetic_world, root)
    damage(root)
    output = tmp_path / "out" / "cache"
    with pytest.raises(UserError, match=message) as caught:
        run_main(monkeypatch, "--split", split, "--dataroot", root, "--output", output)
    assert "\n" not in str(caught.value)
    assert not output.parent.exists()


def test_an_existing_output_is_kept_unless_told_otherwise(synthetic_world, tmp_path, monkeypatch):
    output = tmp_path / "cache"
    output.write_text("mine")
    arguments = ["--split", "val", "--dataroot", synthetic_world, "--output", output]
    code, _, error = generate(*arguments)
    assert code == 2 and error.startswith(f"error: {output}: is already there; give --overwrite")
    assert len(error.splitlines()) == 1
    assert output.read_text() == "mine"
    run_main(monkeypatch, *arguments, "--overwrite")
    assert len(GTCache.open(output)) == 4


def test_an_existing_cache_of_other_settings_is_named(synthetic_world, tmp_path, monkeypatch):
    arguments = ["--split", "val", "--dataroot", synthetic_world, "--output", tmp_path / "cache.safetensors"]
    run_main(monkeypatch, *arguments)
    before = (tmp_path / "cache.safetensors").read_bytes()
    for flag, value, message in (
        ("--pc-range", "100x50", r"made for pc_range \[-15.0, .*, expected \[-25.0, .*; give --overwrite to"),
        ("--gt-style", "streammapnet", "made for gt_style maptr, expected streammapnet"),
        ("--num-workers", "1", "is already there; give --overwrite"),
    ):
        with pytest.raises(UserError, match=message):
            run_main(monkeypatch, *arguments, flag, value)
    assert (tmp_path / "cache.safetensors").read_bytes() == before


@pytest.mark.parametrize(("export", "kilobytes"), [(False, 8), (True, 18)])
def test_a_full_disk_leaves_the_old_files_and_nothing_else(synthetic_world, tmp_path, export, kilobytes):
    """A limit on the size of files stands in for the disk's; the cache has 15 kB, its export 21 kB."""
    files = [tmp_path / "cache.safetensors", tmp_path / "lines.json"][: 1 + export]
    arguments = ["--split", "val", "--dataroot", synthetic_world, "--output", files[0], "--overwrite"]
    if export:
        arguments += ["--export-json", files[1]]
    assert generate(*arguments)[0] == 0
    times = [file.stat().st_mtime_ns for file in files]
    limited = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "-", sys.executable, "tools/generate_gt_cache.py"]
    done = subprocess.run([*limited, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {files[-1]}: cannot be written (File too large), nothing was changed; "
        "free some space or choose another place\n"
    )
    assert [file.stat().st_mtime_ns for file in files] == times and sorted(tmp_path.iterdir()) == files


def test_a_cache_that_cannot_be_written_leaves_the_old_export(synthetic_world, tmp_path, monkeypatch):
    def no_space(path, *_):
        raise UserError(f"{path}: cannot be written (No space left on device), nothing was changed; free some space")

    monkeypatch.setattr("tools.generate_gt_cache.write_gt_cache", no_space)
    (tmp_path / "lines.json").write_text("old")
    with pytest.raises(UserError, match="cache: cannot be written .*, nothing was changed"):
        run_main(
            *(monkeypatch, "--split", "val", "--dataroot", synthetic_world, "--overwrite"),
            *("--output", tmp_path / "cache", "--export-json", tmp_path / "lines.json"),
        )
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_outputs_are_tried_before_the_work(synthetic_world, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tools.generate_gt_cache.load_tables", lambda *_: pytest.fail("the work has begun"))
    arguments = ["--split", "val", "--dataroot", synthetic_world, "--output", tmp_path / "cache"]
    for flags, message in (
        (
            ["--output", tmp_path / "file" / "cache"],
            "file/cache: cannot be written, .* is not a writable folder; choose another place with --output, and name "
            "it to the training scripts by GT_CACHE_TRAIN or GT_CACHE_VAL$",
        ),
        (["--export-json", tmp_path], "is not a file and cannot be replaced by one; choose another place$"),
        (["--export-json", tmp_path / "cache"], "cache: is to be written twice"),
    ):
        with pytest.raises(UserError, match=message):
            run_main(monkeypatch, *arguments, *flags)
    with pytest.raises(UserError, match="file: not a folder; give the nuScenes folder"):
        run_main(monkeypatch, "--split", "val", "--dataroot", tmp_path / "file")


class DyingVectorizer:
    """Ends its process as the kernel does when memory runs out."""

    def vectorize(self, patch2global):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("count", [100, 28_000])  # of many the last are handed over when the workers are dead
def test_a_killed_worker_ends_the_work_in_one_line(count):
    records = make_random_records(100) * (count // 100)
    vectorizers = {record.location: DyingVectorizer() for record in records}
    with pytest.raises(UserError, match="one of 2 worker processes was killed, .* memory; give fewer --num-workers"):
        vectorize_records(records, vectorizers, "maptr", 2)


INTERRUPTED = """
import os
import time
import numpy as np
from tests.made_records import make_random_records
from tools.generate_gt_cache import vectorize_records
from utils.errors import run_cli

class Slow:
    def vectorize(self, patch2global):
        os.write(1, b"at work\\n")  # in one piece, whatever the other worker writes
        time.sleep(0.02)
        return np.zeros(0, np.int64), []

records = make_random_records(5000)
run_cli(lambda: vectorize_records(records, {record.location: Slow() for record in records}, "maptr", 2))
"""


def test_an_interrupt_ends_the_workers_in_one_line():
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "at work\n"
    started = time.perf_counter()
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to all processes of the terminal
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")
    assert time.perf_counter() - started < 20, "the jobs that waited, 50 s of them, are dropped"
