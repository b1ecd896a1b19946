import json

import pytest

from data.splits import resolve_split, scene_names_of
from tests.reference import REFERENCE, needs_reference
from utils.errors import UserError


def test_official_splits_have_their_published_sizes():
    sizes = {"train": 700, "val": 150, "mini_train": 8, "mini_val": 2}
    assert {split: len(scene_names_of(split)) for split in sizes} == sizes


def test_geographic_splits_are_disjoint_parts_of_the_official_scenes():
    train, val = scene_names_of("geographic_train"), scene_names_of("geographic_val")
    assert (len(train), len(val)) == (698, 148) and not train & val
    assert train | val < scene_names_of("train") | scene_names_of("val")


@needs_reference
@pytest.mark.parametrize("split", ["geographic_train", "geographic_val"])
def test_geographic_splits_are_the_published_ones(split):
    published = json.loads((REFERENCE / "splits" / "geographic.json").read_text())
    assert scene_names_of(split) == set(published[split])


def test_names_in_the_mini_version():
    assert resolve_split("train", "v1.0-mini") == "mini_train"
    assert resolve_split("geographic_val", "v1.0-mini") == "geographic_val"
    assert resolve_split("train", "v1.0-trainval") == "train"
    with pytest.raises(UserError, match="'test' is not one of train, val"):
        resolve_split("test", "v1.0-trainval")
