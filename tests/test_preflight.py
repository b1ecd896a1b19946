"""test_training_setup.py: each thing that can be missing is really missing here, and the line names what mends it."""

import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

import test_training_setup
from tools import generate_gt_cache
from training import environment_checks, preflight
from utils import requirements
from utils.checklist import Caution, Checklist
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_dataset_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("NUSCENES_DATAROOT", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(environment_checks, "default_dataroot", lambda: str(tmp_path / "nowhere"))


@pytest.fixture
def world(synthetic_world, caches, tmp_path) -> Path:
    """The synthetic world with links in the place of folders, so that a test may take one away."""
    root = tmp_path / "world"
    for folder in ("samples", "gt_cache"):
        (root / folder).mkdir(parents=True)
        for entry in (synthetic_world / folder).iterdir():
            (root / folder / entry.name).symlink_to(entry)
    shutil.copytree(synthetic_world / "maps", root / "maps")
    (root / "v1.0-trainval").symlink_to(synthetic_world / "v1.0-trainval")
    return root


def environment(capsys: pytest.CaptureFixture, *flags: object) -> dict[str, str]:
    """The line of each check around the model, by its name."""
    args = preflight.parse_args("", ["--preset", "tiny", *map(str, flags)])
    preflight.run_environment_checks(Checklist(), args, args.qformer_pretrained or "none")
    lines = capsys.readouterr().out.splitlines()
    return {line[8:].partition(":")[0]: line for line in lines}


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *flags: object) -> tuple[int, str]:
    """Exit code and output of the whole script, in this process, which has torch already."""
    monkeypatch.setattr(sys, "argv", ["test_training_setup.py", "--preset", "tiny", *map(str, flags)])
    try:
        test_training_setup.main()
        code = 0
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().out


def test_all_checks_pass_on_a_sound_setup(synthetic_world, caches):
    command = [sys.executable, "test_training_setup.py", "--preset", "tiny", "--dataroot", str(synthetic_world)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [f"[{n}/5]" in result.stdout for n in range(1, 6)] == [True] * 5
    assert "Gradient statistics" in result.stdout and result.stdout.splitlines()[-1].startswith("all checks passed")
    assert "\nok      [5/5] data: 8 samples, split train" in result.stdout
    for name in ("dataroot", "tables", "map expansion: version 1.3", "train cache", "val cache", "disk"):
        assert f"\nok      {name}" in result.stdout


@pytest.mark.parametrize("part", ["", "qformer"])  # without which a whole parameter group is empty
def test_made_up_data_do_where_no_dataset_is_given(part, monkeypatch, capsys):
    code, text = call(monkeypatch, capsys, "--without", part)
    assert code == 0 and "warning dataroot: " in text and "give --dataroot or NUSCENES_DATAROOT" in text
    for name in ("tables", "map expansion", "train cache", "val cache"):
        assert f"skipped {name}: no dataset" in text
    assert "skipped [5/5] data: made-up data only" in text


def test_a_failed_check_is_named_what_needs_it_is_skipped_and_the_exit_code_is_1(
    synthetic_world, caches, monkeypatch, capsys
):
    code, text = call(monkeypatch, capsys, "--dataroot", synthetic_world, "--gt-cache-train", caches["train"],
                      "--gt-cache-val", caches["val"], "--pc-range", "100x50")
    assert code == 1 and "[4/5] backward: loss" in text and "skipped [5/5] data: needs train cache" in text
    assert f"FAILED  train cache: {caches['train']}: made for pc_range" in text and "--pc-range 100x50" in text
    assert text.endswith("2 failed: train cache, val cache; mend the first one and run this again\n")


@pytest.mark.parametrize("flags", [["--batch-size", "0"], ["--image-size", "3", "3"]])
def test_a_wrong_flag_is_refused_before_the_first_check(flags, monkeypatch, capsys):
    with pytest.raises(UserError, match=flags[0][2:].replace("-", ".")):
        call(monkeypatch, capsys, *flags)
    assert capsys.readouterr().out == ""


def test_a_bare_python_is_told_what_to_install():
    command = [sys.executable, "-S", "test_training_setup.py", "--preset", "tiny"]  # -S: no site-packages
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    python, packages, *skipped, last = result.stdout.splitlines()
    assert result.returncode == 1 and python.startswith("ok      Python: ")
    assert packages.startswith("FAILED  packages: torch is not installed, ") and "pip install 'torch>=" in packages
    assert "shapely is not installed (needed for ground-truth caches, " in packages
    assert skipped == ["skipped imports: needs packages", "skipped all other checks: needs imports"]
    assert last.startswith("1 failed: packages")


def test_another_python_is_refused(monkeypatch):
    monkeypatch.setattr(requirements, "PYTHONS", ((9, 1), (9, 2)))
    with pytest.raises(UserError, match=r"expected 9\.1 or 9\.2; .*PYTHON=python9\.1 bash scripts/setup\.sh"):
        requirements.check_python()


@pytest.mark.parametrize(
    ("package", "version", "kind", "words"),
    [
        ("torch", "2.3.1+cu121", UserError, r"torch is too old: 2\.3\.1.cu121, expected >=2\.4; .*'torch>=2\.4'$"),
        ("torch", "", UserError, r"torch is not installed; .* install 'torch>=2\.4'$"),
        ("torch", "2.10.0", None, "torch 2.10.0, shapely 2.0.3"),  # newer than 2.4, although not as text
        ("numpy", "2.1.0", Caution, "numpy is newer than was tried: 2.1.0, .* install 'numpy>=1.26,<2'$"),
        ("numpy", "2.0.0rc1", Caution, "numpy is newer"),
        ("shapely", "1.8.5", Caution, r"shapely is too old: 1.8.5, .* \(needed for ground-truth caches, .* only\); "),
        ("shapely", "", Caution, r"shapely is not installed \(needed for .* only\); .* install"),
    ],
)
def test_packages_are_held_against_requirements(package, version, kind, words, monkeypatch, tmp_path):
    installed = {"numpy": "1.26", "torch": "2.4.1", "shapely": "2.0.3"} | {package: version}
    (tmp_path / "requirements.txt").write_text("# why\nnumpy>=1.26,<2  # a, b\ntorch>=2.4\nshapely>=2.0.3,<2.1\n")
    monkeypatch.setattr(requirements, "REQUIREMENTS", tmp_path / "requirements.txt")
    monkeypatch.setattr(requirements, "version", installed.__getitem__)
    if kind is None:
        assert words in requirements.check_packages()
    else:
        with pytest.raises(kind, match=words):
            requirements.check_packages()


def test_every_line_of_the_requirements_is_checked():
    lines = [line for line in requirements.REQUIREMENTS.read_text().splitlines() if line and line[0] not in "#-"]
    found = dict(requirements.required_packages())
    assert len(found) == len(lines) > 8 and set(requirements.NEEDED_FOR) < set(found)
    assert all(re.fullmatch(r"(>=[\d.]+)?(,?<[\d.]+)?", specifier) for specifier in found.values()), found


@pytest.mark.parametrize(
    ("cuda", "hidden", "preset", "words"),
    [
        ("12.4", None, "tiny", "FAILED  GPU: NVIDIA T4, driver 470.1: .* CUDA 12.4, finds no GPU; update the driver"),
        (None, None, "tiny", "FAILED  GPU: .* built without CUDA; pip install --force-reinstall torch"),
        ("12.4", "", "tiny", "ok      GPU: none .CUDA_VISIBLE_DEVICES= hides it.; .* the CPU and fp32"),
        ("12.4", "", "base", "warning GPU: .*; unset CUDA_VISIBLE_DEVICES, or take --preset tiny"),
    ],
)
def test_a_gpu_that_torch_cannot_see(cuda, hidden, preset, words, monkeypatch, tmp_path, capsys):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA T4, 470.1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert_matches(words, environment(capsys, "--preset", preset, "--llm-path", "random")["GPU"])


def test_a_gpu_that_this_torch_is_not_built_for(monkeypatch, capsys):
    def no_kernel(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    for name, value in {"is_available": True, "mem_get_info": (5, 9), "get_device_name": "NVIDIA X",
                        "get_device_capability": (3, 5)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(environment_checks.torch, "ones", no_kernel)
    line = environment(capsys)["GPU"]
    assert_matches("FAILED  GPU: NVIDIA X, compute capability 3.5: .*no kernel image .*; install a torch built", line)


def test_a_full_disk_and_an_output_folder_that_cannot_be(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    lines = environment(capsys, "--output-dir", tmp_path / "file")
    assert_matches("FAILED  disk: .*choose another place", lines["disk"])
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(environment_checks.shutil, "disk_usage", lambda _: usage(0.4e9))
    assert_matches("FAILED  disk: .*0.4 GB free, .* take 1 GB; free some space", environment(capsys)["disk"])
    monkeypatch.setattr(environment_checks.shutil, "disk_usage", lambda _: usage(4e9))
    line = environment(capsys, "--unfreeze-llm", "--confirm-unfreeze-llm")["disk"]
    assert "4 GB free" in line and "a checkpoint takes 12 GB for each billion" in line and not line.startswith("ok")


def test_a_dataroot_that_is_not_there_or_lacks_a_camera(world, capsys):
    lines = environment(capsys, "--dataroot", world / "no")
    assert_matches("FAILED  dataroot: .*no such folder; give the nuScenes folder with --dataroot", lines["dataroot"])
    assert lines["train cache"] == "skipped train cache: needs dataroot"
    (world / "samples/CAM_BACK").unlink()
    lines = environment(capsys, "--dataroot", world)
    assert_matches("FAILED  dataroot: .*no images of CAM_BACK; unpack .*blobs", lines["dataroot"])
    above = environment(capsys, "--dataroot", world.parent)["dataroot"]
    assert above.endswith(f"; give --dataroot {world}")


def test_tables_and_maps_fail_only_where_caches_are_still_to_be_made(world, capsys):
    expansion = sorted((world / "maps/expansion").iterdir())[0]
    expansion.unlink()
    for status in ("warning", "FAILED "):
        lines = environment(capsys, "--dataroot", world)
        assert_matches(f"{status} map expansion: {expansion}.*unpack nuScenes-map-expansion-v1.3.zip",
                       lines["map expansion"])
        (world / "v1.0-trainval").rename(world / "v1.0-mini")
        lines = environment(capsys, "--dataroot", world, "--gt-cache-train", cache_of(world, "train"))
        assert_matches(f"{status} tables: .*no such folder; give --version v1.0-mini", lines["tables"])
        assert lines["map expansion"] == "skipped map expansion: needs tables"
        (world / "v1.0-mini").rename(world / "v1.0-trainval")
        cache_of(world, "val").unlink(missing_ok=True)


def test_an_old_map_expansion_and_a_missing_basemap(world, capsys):
    cache_of(world, "val").unlink()
    for path in (world / "maps/expansion").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "1.2"}))
    lines = environment(capsys, "--dataroot", world)
    assert_matches("FAILED  map expansion: .*version 1.2, expected 1.3 or later; unpack", lines["map expansion"])
    for path in (world / "maps").glob("*.png"):
        path.unlink()
    assert_matches("FAILED  tables: .*no such basemap; unpack", environment(capsys, "--dataroot", world)["tables"])


def test_a_missing_cache_names_the_command_that_makes_it(world, monkeypatch, capsys):
    path = cache_of(world, "train")
    path.unlink()
    line = environment(capsys, "--dataroot", world)["train cache"]
    command = line.partition("; make it with python tools/generate_gt_cache.py ")[2].split()
    monkeypatch.setattr(sys, "argv", ["generate_gt_cache.py", *command])
    args = generate_gt_cache.parse_args()
    assert line.startswith(f"FAILED  train cache: {path}: no such GT cache file")
    assert (args.split, args.version, args.dataroot, args.output) == ("train", "v1.0-trainval", str(world), str(path))


def test_a_cache_that_is_damaged_of_another_split_or_of_the_same_scenes(world, capsys):
    train, val = cache_of(world, "train"), cache_of(world, "val")
    lines = environment(capsys, "--dataroot", world, "--gt-cache-train", val, "--val-split", "train", "--gt-cache-val",
                        train)
    assert_matches("FAILED  train cache: .*made for split val, expected train; .*generate_gt_cache.py --split train",
                   lines["train cache"])
    lines = environment(capsys, "--dataroot", world, "--val-split", "train", "--gt-cache-val", train)
    assert_matches("FAILED  val cache: .*shares 2 scenes with the other cache; take splits", lines["val cache"])
    content = bytearray(val.read_bytes())
    content[-1] ^= 1
    val.unlink()
    val.write_bytes(content)
    assert_matches("FAILED  val cache: .*digest .*; make it anew with python tools/generate_gt_cache.py",
                   environment(capsys, "--dataroot", world)["val cache"])


def test_images_that_were_not_unpacked(world, capsys):
    (world / "samples/CAM_BACK").unlink()
    (world / "samples/CAM_BACK").mkdir()
    (world / "samples/CAM_BACK/another.jpg").touch()
    assert_matches("FAILED  train cache: .*CAM_BACK/.*: no such image, nor 7 more of the 48 looked for; unpack all",
                   environment(capsys, "--dataroot", world)["train cache"])


def cache_of(world: Path, split: str) -> Path:
    return world / f"gt_cache/v1.0-trainval_{split}_60x30.safetensors"


def assert_matches(pattern: str, line: str) -> None:
    assert re.match(pattern, line), line
