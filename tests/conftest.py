"""Fixtures that several test files share."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.synthetic.plan import WorldSettings
from data.synthetic.world import write_world

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Settle what processes that tests start inherit: no GPUs, unless tests for them were asked for, and signals.

    The other tests expect what a CPU does: bit-equal repetitions, fp32 where nothing is said, two ranks on one machine.
    """
    if "gpu" not in config.getoption("markexpr").replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Under nohup, and behind `&` in a script, they come ignored, and bash never heeds what was ignored at its start.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session")
def synthetic_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataroot of a tiny world: v1.0-trainval, 2 train scenes and 1 val scene of 4 samples, images 400x225."""
    root = tmp_path_factory.mktemp("world") / "synthetic"
    settings = WorldSettings(
        version="v1.0-trainval",
        train_scenes=("scene-0001", "scene-0002"),
        val_scenes=("scene-0003",),
        samples_per_scene=4,
        seed=191,
        image_size=(400, 225),
    )
    write_world(root, settings, num_workers=1)
    return root


@pytest.fixture(scope="session")
def caches(synthetic_world: Path) -> dict[str, Path]:
    """Caches of the tiny world's two splits."""
    paths = {}
    for split in ("train", "val"):
        paths[split] = synthetic_world / "gt_cache" / f"v1.0-trainval_{split}_60x30.safetensors"
        command = ["tools/generate_gt_cache.py", "--split", split, "--dataroot", str(synthetic_world)]
        subprocess.run([sys.executable, *command, "--overwrite"], cwd=ROOT, check=True, capture_output=True)
    return paths


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach; tmp_path lies in one that is closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
