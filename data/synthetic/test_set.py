"""The tables of a test set, as nuScenes publishes its own."""

import json
from pathlib import Path

TEST_VERSION = "v1.0-test"
_FIRST_SCENE = 9000  # a number of no scene in any split


def write_test_tables(tables: Path, out: Path) -> None:
    """Copy a version's tables to the folder `out`: no annotations, and names of scenes that are in no other split."""
    out.mkdir(parents=True)
    for table in tables.glob("*.json"):
        rows = json.loads(table.read_text())
        if table.stem in ("instance", "sample_annotation"):
            rows = []
        if table.stem == "scene":
            rows = [row | {"name": f"scene-{_FIRST_SCENE + index}"} for index, row in enumerate(rows)]
        (out / table.name).write_text(json.dumps(rows))
