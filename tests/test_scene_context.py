from dataclasses import replace

import pytest

from data.dataset import MapDetectionDataset, collate
from data.gt_cache import GTCache
from data.scene_context import context_of
from data.transforms import AugmentConfig
from tests.made_records import make_random_records
from tests.reference import REFERENCE, needs_reference
from utils.errors import UserError


@pytest.mark.parametrize(
    ("location", "description", "expected"),
    [
        ("boston-seaport", "Parked truck, construction", "Boston, traffic drives on the right, day"),
        ("singapore-queenstown", "Night, peds on sidewalk", "Singapore, traffic drives on the left, night"),
        ("singapore-onenorth", "Rain, many peds", "Singapore, traffic drives on the left, day, rain"),
        ("boston-seaport", "Train tracks, tonight's terrain", "Boston, traffic drives on the right, day"),
        ("singapore-hollandvillage", "Nighttime, after rain", "Singapore, traffic drives on the left, night, rain"),
    ],
)
def test_words_for_the_prompt(location, description, expected):
    record = replace(make_random_records(1)[0], location=location, scene_description=description)
    assert context_of(record) == expected


def test_a_city_that_nuscenes_does_not_have_is_refused():
    record = replace(make_random_records(1)[0], location="berlin-mitte")
    with pytest.raises(UserError, match="berlin-mitte.*leave out --prompt-context"):
        context_of(record)


def test_the_words_reach_the_batch_through_the_cache(synthetic_world, caches):
    cache = GTCache.open(caches["train"])
    assert cache[0].scene_description.startswith("Synthetic town")
    dataset = MapDetectionDataset(cache, synthetic_world, (32, 64), with_context=True)
    batch = collate([dataset[0], dataset[len(dataset) - 1]])
    assert batch["context"] == [context_of(cache[0]), context_of(cache[len(cache) - 1])]
    mirrored = MapDetectionDataset(cache, synthetic_world, (32, 64), with_context=True,
                                   augment=AugmentConfig(mirror_probability=1.0))
    assert mirrored[0]["context"] == context_of(cache[0], mirrored=True) != context_of(cache[0])
    plain = MapDetectionDataset(cache, synthetic_world, (32, 64))
    assert "context" not in collate([plain[0]])


@needs_reference
def test_descriptions_of_real_scenes_are_read():
    from data.nuscenes_reader import load_tables, read_records

    (record,) = read_records(load_tables(REFERENCE / "real_sample", "v1.0-mini"), "mini_train")
    assert "Parked truck, construction" in record.scene_description
