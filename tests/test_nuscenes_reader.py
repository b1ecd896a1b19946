"""data/nuscenes_reader.py: broken tables are refused in one line that names the table, the record and the fix."""

import json
import shutil

import pytest

from data.nuscenes_reader import load_tables, read_records, require_dataroot
from tests.unprivileged import as_nobody
from utils.errors import UserError

VERSION = "v1.0-trainval"
TOKEN = "[0-9a-f]{32}"


@pytest.fixture
def tables_root(synthetic_world, tmp_path):
    """A copy of the synthetic world's tables and basemaps."""
    root = tmp_path / "nuscenes"
    ignored = shutil.ignore_patterns("samples", "sweeps", "gt_cache", "expansion")
    shutil.copytree(synthetic_world, root, ignore=ignored)
    return root


def refused(root, message):
    with pytest.raises(UserError, match=rf"{VERSION}/{message}.*; .*unpack the {VERSION} tables") as caught:
        read_records(load_tables(root, VERSION), "train")
    assert "\n" not in str(caught.value)


def change(table, **fields):
    """Sets fields of every record of a table; None of ... takes a field away."""

    def damage(root):
        path = root / VERSION / f"{table}.json"
        records = json.loads(path.read_text())
        for record in records:
            record.update(fields)
            for field, value in fields.items():
                if value is ...:
                    del record[field]
        path.write_text(json.dumps(records, default=str))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("scene", first_sample_token="x"), f"scene.json: record {TOKEN}: first_sample_token refers to 'x'"),
        (change("scene", first_sample_token=""), f"scene.json: record {TOKEN}: first_sample_token refers to ''"),
        (change("scene", first_sample_token=...), f"scene.json: record {TOKEN}: first_sample_token is missing, a text"),
        (change("scene", log_token="x"), f"scene.json: record {TOKEN}: log_token refers to 'x', .* in log.json"),
        (change("scene", log_token=None), f"scene.json: record {TOKEN}: log_token is None, a text"),
        (change("scene", description=...), f"scene.json: record {TOKEN}: description is missing, a text"),
        (change("scene", name=...), f"scene.json: record {TOKEN}: name is missing, a text"),
        (change("log", location=None), f"log.json: record {TOKEN}: location is None, a text"),
        (change("sample", next="x"), f"sample.json: record {TOKEN}: next refers to 'x', which is not there"),
        (change("sample", next=None), f"sample.json: record {TOKEN}: next is None, a text"),
        (change("sample", timestamp="noon"), f"sample.json: record {TOKEN}: timestamp is 'noon', a whole number"),
        (change("sample_data", ego_pose_token="x"), f"sample_data.json: record {TOKEN}: ego_pose_token refers to 'x'"),
        (change("sample_data", filename=None), f"sample_data.json: record {TOKEN}: filename is None, a text"),
        (change("sample_data", width=0), f"sample_data.json: record {TOKEN}: width is 0, a positive finite number"),
        (change("sample_data", height="9"), f"sample_data.json: record {TOKEN}: height is '9', a positive finite"),
        (change("ego_pose", rotation=[1, 0, 0]), rf"ego_pose.json: record {TOKEN}: rotation is \[1, 0, 0\], 4 finite"),
        (change("ego_pose", rotation=[0, 0, 0, 0]), f"ego_pose.json: record {TOKEN}: rotation is .*, a unit quat"),
        (change("ego_pose", translation=["a", 0, 0]), rf"ego_pose.json: record {TOKEN}: translation is \['a', 0, 0\]"),
        (change("ego_pose", translation=[float("nan")] * 3), f"ego_pose.json: record {TOKEN}: translation is .nan"),
        (change("ego_pose", translation=...), f"ego_pose.json: record {TOKEN}: translation is missing, 3 finite"),
        (
            change("calibrated_sensor", camera_intrinsic=[]),
            rf"calibrated_sensor.json: record {TOKEN}: camera_intrinsic is \[\], 3x3 finite numbers are expected",
        ),
        (
            change("calibrated_sensor", camera_intrinsic=[[1, 0, 0], [0, 1]]),
            f"calibrated_sensor.json: record {TOKEN}: camera_intrinsic is .*, 3x3 finite numbers",
        ),
        (
            change("sample_data", calibrated_sensor_token="x"),
            f"sample_data.json: record {TOKEN}: calibrated_sensor_token refers to 'x', which is not there",
        ),
        (change("sample_data", sample_token="x"), f"sample_data.json: record {TOKEN}: sample_token refers to 'x'"),
        (change("sensor", channel=...), f"sensor.json: record {TOKEN}: channel is missing, a text"),
        (change("sample", token=...), "sample.json: record number 0: token is missing, a text"),
        (change("map", log_tokens=[]), f"map.json: no map names log {TOKEN}, every log needs one"),
        (change("map", log_tokens=...), f"map.json: record {TOKEN}: log_tokens is missing, a list"),
    ],
)
def test_a_broken_record_is_named(tables_root, damage, message):
    damage(tables_root)
    refused(tables_root, message)


def test_samples_that_lead_in_a_circle_are_refused(tables_root):
    path = tables_root / VERSION / "sample.json"
    samples = json.loads(path.read_text())
    for sample in samples:
        sample["next"] = sample["next"] or samples[0]["token"]
    path.write_text(json.dumps(samples))
    refused(tables_root, f"sample.json: record {TOKEN}: two `next` lead to it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"log.json: not a nuScenes table, 0 bytes \(Expecting value"),
        (b'[{"token": "a', r"log.json: not a nuScenes table, 13 bytes \(Unterminated string"),
        (b"\xff\xfe\x00", "log.json: not a nuScenes table, 3 bytes"),
        (b"\xef\xbb\xbf[]", "log.json: not a nuScenes table, 5 bytes .*BOM"),
        (b"null", "log.json: holds None, a list of records is expected"),
        (b'{"a": 1}', "log.json: holds {'a': 1}, a list of records is expected"),
        (b"[1, 2]", "log.json: record number 0 is 1, an object with a token is expected"),
    ],
)
def test_a_table_that_is_not_one_is_named(tables_root, content, message):
    (tables_root / VERSION / "log.json").write_bytes(content)
    refused(tables_root, message)


def test_a_missing_table_is_named(tables_root):
    path = tables_root / VERSION / "log.json"
    path.unlink()
    refused(tables_root, "log.json: no such file, a nuScenes table is expected")
    path.symlink_to(tables_root / "nowhere.json")
    refused(tables_root, "log.json: no such file, a nuScenes table is expected")


def test_line_ends_of_windows_are_read(tables_root):
    expected = len(read_records(load_tables(tables_root, VERSION), "train"))
    for path in (tables_root / VERSION).glob("*.json"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").replace(b"}, {", b"},\r\n{"))
    assert len(read_records(load_tables(tables_root, VERSION), "train")) == expected


def test_what_is_no_dataroot_is_refused(tables_root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: not a folder; give the nuScenes folder"):
        require_dataroot(tmp_path / "file", VERSION)
    with pytest.raises(UserError, match=rf"v1.0-mini: no such folder, versions there: {VERSION}; give one of them"):
        require_dataroot(tables_root, "v1.0-mini")


def test_tables_without_permission_are_refused_in_one_line(tables_root, open_folder):
    root = open_folder / "nuscenes"
    shutil.copytree(tables_root, root)
    for denied, message in (
        (root / VERSION / "log.json", r"log\.json: cannot be read \(Permission denied\)"),
        (root / VERSION, r"category\.json: cannot be read \(Permission denied\)"),
        (root, rf"{VERSION}: cannot be read \(Permission denied\); make the dataroot readable"),
    ):
        mode = denied.stat().st_mode
        denied.chmod(0)
        with as_nobody(), pytest.raises(UserError, match=message) as caught:
            load_tables(root, VERSION)
        denied.chmod(mode)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lidarseg", "panoptic"])
def test_a_table_of_point_labels_without_the_labels_is_named(tables_root, name):
    table = tables_root / VERSION / f"{name}.json"
    table.write_text("[]")
    with pytest.raises(UserError, match=rf"{name}\.json: .*/{name}/{VERSION}, no such folder; move the table away"):
        load_tables(tables_root, VERSION)
    table.unlink()
    load_tables(tables_root, VERSION)
