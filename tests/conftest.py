"""Fixtures that several test files share."""

from pathlib import Path

import pytest

from data.synthetic.plan import WorldSettings
from data.synthetic.world import write_world


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
