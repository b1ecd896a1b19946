import errno
import json
import os
import pickle
import time
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data.gt_cache import GTCache, default_cache_path, write_gt_cache
from tests.made_records import META, make_random_records
from tests.unprivileged import as_nobody
from utils.errors import UserError
from utils.frame import CAMERAS, CLASSES, PC_RANGES


@pytest.fixture
def cache_path(tmp_path):
    path = tmp_path / "cache.safetensors"
    write_gt_cache(path, make_random_records(20), META)
    return path


def assert_same_record(found, expected):
    for field in fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "pts_m":
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                assert a.dtype == np.float32
                np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)


def edit_header(path: Path, old: str, new: str) -> None:
    """Replace text in the header, keeping the tensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode()
    assert old in header
    header = header.replace(old, new).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def test_round_trip(cache_path):
    records = make_random_records(20)
    cache = GTCache.open(cache_path)
    cache.verify()
    assert len(cache) == 20
    for index, record in enumerate(records):
        assert_same_record(cache[index], record)
        assert cache.index_of(record.sample_token) == index
    assert cache.sample_tokens == [record.sample_token for record in records]
    assert len(list(cache)) == 20  # iteration ends
    assert cache.meta["split"] == "mini_train"
    assert cache.meta["cameras"] == list(CAMERAS) and cache.meta["classes"] == list(CLASSES)


def test_same_records_give_the_same_bytes(cache_path, tmp_path):
    write_gt_cache(tmp_path / "again", make_random_records(20), META)
    assert (tmp_path / "again").read_bytes() == cache_path.read_bytes()


@pytest.mark.parametrize("count", [0, 1])
def test_empty_ground_truth(tmp_path, count):
    records = [replace(r, labels=np.zeros(0, np.int64), pts_m=[]) for r in make_random_records(count)]
    write_gt_cache(tmp_path / "empty", records, META)
    cache = GTCache.open(tmp_path / "empty")
    cache.verify()
    assert len(cache) == count
    for index, record in enumerate(records):
        assert_same_record(cache[index], record)


def test_any_safetensors_reader_opens_it(cache_path):
    tensors = load_file(cache_path)
    points = np.concatenate([pts for record in make_random_records(20) for pts in record.pts_m])
    np.testing.assert_array_equal(tensors["points"], points)


def first_token(cache):
    return cache[3].sample_token


def test_pickles_as_its_path_and_reaches_a_spawned_worker(cache_path):
    cache = GTCache.open(cache_path)
    assert len(pickle.dumps(cache)) < 500
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(first_token, (cache,)) == cache[3].sample_token


def test_opens_quickly_at_the_size_of_the_train_split(tmp_path):
    few = make_random_records(50)
    records = [replace(few[i % 50], sample_token=f"{i:032x}") for i in range(28_130)]
    write_gt_cache(tmp_path / "large", records, META)
    seconds = []
    for _ in range(3):  # another program may come between
        start = time.perf_counter()
        last = GTCache.open(tmp_path / "large")[28_129]
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1
    assert last.sample_token == f"{28_129:032x}"


def test_indices_outside_raise(cache_path):
    cache = GTCache.open(cache_path)
    for index in (-1, 20):
        with pytest.raises(IndexError):
            cache[index]


def test_unknown_token_is_named(cache_path):
    with pytest.raises(UserError, match="nowhere.*mini_train"):
        GTCache.open(cache_path).index_of("nowhere")


def test_missing_file_names_the_command(tmp_path):
    path = tmp_path / "none.safetensors"
    with pytest.raises(UserError, match=r"none\.safetensors: no such.*generate_gt_cache\.py") as caught:
        GTCache.open(path)
    assert str(caught.value).endswith(
        f"--split <split> --version <version> --dataroot <nuScenes folder> --output {path}"
    )
    for name, settings in (
        ("v1.0-mini_mini_val_60x30", "--split mini_val --version v1.0-mini --pc-range 60x30 --gt-style maptr"),
        (
            "v1.0-trainval_geographic_train_100x50_streammapnet",
            "--split geographic_train --version v1.0-trainval --pc-range 100x50 --gt-style streammapnet",
        ),
    ):
        path = tmp_path / "a b" / "gt_cache" / f"{name}.safetensors"
        with pytest.raises(UserError) as caught:
            GTCache.open(path)
        assert str(caught.value).endswith(f"{settings} --dataroot '{tmp_path}/a b' --output '{path}'")


def test_the_command_for_a_broken_cache_makes_that_file(cache_path):
    settings = "--split mini_train --version v1.0-mini --pc-range 60x30 --gt-style maptr"
    command = f"{settings} --dataroot <nuScenes folder> --output {cache_path} --overwrite"
    data = cache_path.read_bytes()
    cache_path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="digest") as caught:
        GTCache.open(cache_path).verify()
    assert str(caught.value).endswith(command)
    edit_header(cache_path, r"\"schema\": 2", r"\"schema\": 1")
    with pytest.raises(UserError, match="schema 1, expected 2") as caught:
        GTCache.open(cache_path)
    assert str(caught.value).endswith(command)


def test_the_command_for_other_settings_does_not_replace_the_cache(cache_path):
    with pytest.raises(UserError) as caught:
        GTCache.open(cache_path).require(pc_range=PC_RANGES["100x50"])
    assert str(caught.value).endswith(f"--output {cache_path.parent / 'v1.0-mini_mini_train_100x50.safetensors'}")
    with pytest.raises(UserError, match=r"expected \[-25.0, .*; give another$"):
        GTCache.open(cache_path).require(pc_range=PC_RANGES["100x50"], fix="give another")


def test_an_unreadable_cache_is_refused_in_one_line(open_folder):
    path = open_folder / "cache.safetensors"
    write_gt_cache(path, make_random_records(1), META)
    path.chmod(0)
    with as_nobody(), pytest.raises(UserError, match=r"cache\.safetensors: cannot be read \(Permission denied\); give"):
        GTCache.open(path)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        GTCache.open(open_folder)


@pytest.mark.parametrize("name", ["camera_intrinsic", "image_sizes", "lidar2global"])
def test_arrays_of_another_shape_are_not_written(tmp_path, name):
    """nuScenes has [] as the intrinsics of what is no camera."""
    records = make_random_records(3)
    records[1] = replace(records[1], **{name: np.zeros(0)})
    with pytest.raises(ValueError, match=rf"sample {records[1].sample_token}: {name} of shape \(0,\), expected \("):
        write_gt_cache(tmp_path / "cache", records, META)
    records = [replace(record, **{name: np.zeros(0)}) for record in records]
    with pytest.raises(ValueError, match=rf"sample {records[0].sample_token}: {name} of shape"):
        write_gt_cache(tmp_path / "cache", records, META)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"1234", b"\x10" + bytes(7) + b"not json at all!", b"x" * 1000])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other: .*generate_gt_cache\.py"):
        GTCache.open(path)


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: the header is not that of a GT cache"):
        GTCache.open(tmp_path / "model.safetensors")


def test_another_schema_is_refused(cache_path):
    edit_header(cache_path, r"\"schema\": 2", r"\"schema\": 7")
    with pytest.raises(UserError, match=r"schema 7, expected 2; .*generate_gt_cache\.py"):
        GTCache.open(cache_path)


def test_other_cameras_are_refused(cache_path):
    edit_header(cache_path, "CAM_BACK_LEFT", "CAM_BACK_DOWN")
    with pytest.raises(UserError, match="cameras .*CAM_BACK_DOWN.* expected .*CAM_BACK_LEFT"):
        GTCache.open(cache_path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_truncation_is_noticed_at_opening(cache_path, share):
    data = cache_path.read_bytes()
    cache_path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"cache\.safetensors: .*generate_gt_cache\.py"):
        GTCache.open(cache_path)


@pytest.mark.parametrize(("old", "new"), [("[20, 4, 4]", "[21, 4, 4]"), ("points", "paints")])
def test_a_header_that_does_not_fit_its_tensors_is_refused(cache_path, old, new):
    edit_header(cache_path, old, new)
    with pytest.raises(UserError, match=r"cache\.safetensors: the header .*generate_gt_cache\.py"):
        GTCache.open(cache_path)


def test_altered_tensor_is_found_by_its_digest(cache_path):
    data = bytearray(cache_path.read_bytes())
    data[-300] ^= 1
    cache_path.write_bytes(data)
    with pytest.raises(UserError, match=r"digest .*--split mini_train --version v1\.0-mini"):
        GTCache.open(cache_path).verify()


def test_altered_setting_is_found_by_its_digest(cache_path):
    edit_header(cache_path, "mini_train", "mini_val00")
    with pytest.raises(UserError, match="digest"):
        GTCache.open(cache_path).verify()


def test_require_accepts_what_fits(cache_path):
    cache = GTCache.open(cache_path)
    cache.require(split="train", pc_range=PC_RANGES["60x30"], version="v1.0-mini", gt_style="maptr")
    cache.require(split="mini_train")
    cache.require()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"split": "val"}, "split mini_train, expected mini_val; .*--split mini_val"),
        ({"pc_range": PC_RANGES["100x50"]}, r"pc_range \[-15.0, .* expected \[-25.0, .*--pc-range 100x50"),
        ({"version": "v1.0-trainval"}, "v1.0-mini, expected v1.0-trainval; .*--version v1.0-trainval"),
        ({"gt_style": "other"}, "gt_style maptr, expected other"),
    ],
)
def test_require_names_value_expectation_and_command(cache_path, wanted, message):
    with pytest.raises(UserError, match=rf"cache\.safetensors: made for .*{message}"):
        GTCache.open(cache_path).require(**wanted)


def test_a_full_disk_leaves_the_old_cache_whole(cache_path, monkeypatch):
    before = cache_path.read_bytes()

    def no_space(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"cache\.safetensors: cannot be written \(No space left"):
        write_gt_cache(cache_path, make_random_records(3), META)
    assert cache_path.read_bytes() == before
    assert os.listdir(cache_path.parent) == [cache_path.name]


def test_default_path_names_version_split_and_range():
    assert default_cache_path("d", "v1.0-mini", "train") == Path(
        "d/gt_cache/v1.0-mini_mini_train_60x30.safetensors"
    )
    assert default_cache_path("d", "v1.0-trainval", "val", "100x50").name == (
        "v1.0-trainval_val_100x50.safetensors"
    )
    with pytest.raises(UserError, match="'test' is not one of"):
        default_cache_path("d", "v1.0-trainval", "test")


def test_meta_is_plain_json(cache_path):
    assert json.loads(json.dumps(GTCache.open(cache_path).meta))["num_samples"] == 20
