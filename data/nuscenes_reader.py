"""nuScenes tables to SampleRecords, by the official devkit. Only tools import this."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from nuscenes import NuScenes

from data.checked_records import Records, read_json
from data.geometry import invert_rigid, pose_matrix, without_roll_and_pitch
from data.images import image_exists
from data.records import SampleRecord
from data.splits import scene_names_of
from utils.errors import UserError
from utils.frame import CAMERAS

# The sensor axis S of the arrays below: six cameras, then the LiDAR.
_CHANNELS = (*CAMERAS, "LIDAR_TOP")
# Tables that the devkit loads, and the fields it follows from one to another while it does.
_TABLES = ("category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene",
           "sample", "sample_data", "sample_annotation", "map")  # fmt: skip
_UNIT_TOLERANCE = 0.01
_REFERENCES = {
    ("instance", "category_token"): "category",
    ("sample_annotation", "instance_token"): "instance",
    ("sample_annotation", "sample_token"): "sample",
    ("calibrated_sensor", "sensor_token"): "sensor",
    ("sample_data", "calibrated_sensor_token"): "calibrated_sensor",
    ("sample_data", "sample_token"): "sample",
}


def require_dataroot(dataroot: str | Path, version: str) -> Path:
    """The folder of a version's tables. Raises UserError when the dataroot or the version is not there."""
    dataroot = Path(dataroot)
    folder = dataroot / version
    try:
        if not dataroot.is_dir():
            found = "not a folder" if dataroot.exists() else "no such folder"
            raise UserError(f"{dataroot}: {found}; give the nuScenes folder with --dataroot or NUSCENES_DATAROOT")
        if not folder.is_dir():
            there = sorted(path.name for path in dataroot.glob("v1.0*") if path.is_dir())
            raise UserError(
                f"{folder}: no such folder, versions there: {', '.join(there) or 'none'}; "
                f"give one of them with --version or unpack the {version} tables"
            )
    except PermissionError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); make the dataroot readable") from error
    return folder


def load_tables(dataroot: str | Path, version: str) -> NuScenes:
    """Load all tables of one version. Raises UserError for a missing dataroot, version, table or basemap."""
    folder = require_dataroot(dataroot, version)
    try:
        return NuScenes(version=version, dataroot=str(dataroot), verbose=False)
    except Exception as error:  # the devkit raises plain Exception as well
        _check_tables(folder)
        _check_label_packs(folder)
        raise UserError(
            f"{folder}: the tables cannot be read ({type(error).__name__}: {error}); "
            f"unpack the {version} tables and the basemaps again"
        ) from error


def _check_tables(folder: Path) -> None:
    """Raise UserError for the first table or record that the devkit cannot load."""
    fix = f"unpack the {folder.name} tables again"
    tables = {}
    for name in _TABLES:
        path = folder / f"{name}.json"
        tables[name] = Records(read_json(path, "nuScenes table", fix), f"{path}:", fix)
    known = {name: dict.fromkeys(table.tokens) for name, table in tables.items()}
    for (name, field), target in _REFERENCES.items():
        tables[name].follow(field, known[target].__getitem__, f"{target}.json")
    tables["category"].values("name", str)
    tables["sensor"].values("channel", str)
    tables["sensor"].values("modality", str)
    tables["sample_data"].values("is_key_frame", bool)
    with_maps = {token for tokens in tables["map"].values("log_tokens", list) for token in tokens}
    for token in tables["log"].tokens:
        if token not in with_maps:
            raise UserError(f"{folder / 'map.json'}: no map names log {token}, every log needs one; {fix}")


def _check_label_packs(folder: Path) -> None:
    """Raise UserError for a table of point labels without their files, which the devkit lists where it finds one."""
    for name in ("lidarseg", "panoptic"):
        table, labels = folder / f"{name}.json", folder.parent / name / folder.name
        if table.is_file() and not labels.is_dir():
            raise UserError(f"{table}: the devkit looks for its labels in {labels}, no such folder; move the table "
                            f"away, nothing here reads it, or unpack the {name} labels too")


def read_records(nusc: NuScenes, split: str | None) -> list[SampleRecord]:
    """The key frames of a resolved split, or of all scenes, scene by scene in time, without ground truth yet.

    Raises UserError when no scene of the split is there, a sample lacks a sensor, or a record is malformed or refers
    to one that is not there.
    """
    chosen = nusc.scene
    if split is not None:
        names = _checked(nusc, "scene", nusc.scene).values("name", str)
        wanted = scene_names_of(split)
        chosen = [scene for scene, name in zip(nusc.scene, names, strict=True) if name in wanted]
    if not chosen:
        raise UserError(
            f"{nusc.table_root}: none of its {len(nusc.scene)} scenes is in split {split}; "
            f"choose another --split or --version"
        )
    scenes = _checked(nusc, "scene", chosen)
    logs = _checked(nusc, "log", scenes.follow("log_token", partial(nusc.get, "log"), "log.json"))
    about_scenes = list(
        zip(scenes.values("name", str), logs.values("location", str), scenes.values("description", str), strict=True)
    )
    samples, scene_of = _samples_of(nusc, scenes)
    readings = _sensor_readings(nusc, samples.records)
    cameras = _checked(nusc, "sample_data", [reading for row in readings for reading in row[:-1]])
    per_camera = (len(samples.records), len(CAMERAS))
    image_paths = np.array(cameras.values("filename", str), object).reshape(per_camera)
    sizes = [cameras.numbers(side, positive=True) for side in ("width", "height")]
    image_sizes = np.stack(sizes, axis=-1).astype(np.int64).reshape(*per_camera, 2)
    intrinsics = _mounts(nusc, cameras).numbers("camera_intrinsic", (3, 3)).reshape(*per_camera, 3, 3)
    cam2lidar, lidar2global, ego2global = _poses(nusc, readings)
    timestamps = samples.values("timestamp", int)
    no_labels, no_lines = np.zeros(0, np.int64), []
    records = []
    for index, sample_token in enumerate(samples.tokens):
        scene_name, location, description = about_scenes[scene_of[index]]
        records.append(
            SampleRecord(
                sample_token=sample_token,
                scene_name=scene_name,
                location=location,
                timestamp=timestamps[index],
                image_paths=tuple(image_paths[index]),
                image_sizes=image_sizes[index],
                camera_intrinsic=intrinsics[index],
                cam2lidar=cam2lidar[index],
                lidar2global=lidar2global[index],
                ego2global=ego2global[index],
                ground_z=-float(lidar2global[index, 2, 3]),  # the road is at global z = 0
                labels=no_labels,
                pts_m=no_lines,
                scene_description=description,
            )
        )
    return records


def check_images(records: Sequence[SampleRecord], dataroot: str | Path) -> None:
    """Raise UserError for the first image that is not there."""
    for record in records:
        for path in record.image_paths:
            if not image_exists(dataroot, path):
                raise UserError(
                    f"{Path(dataroot) / path}: no such image, sample {record.sample_token} needs it; "
                    f"unpack the nuScenes archive with it or give --skip-image-check"
                )


def _checked(nusc: NuScenes, table: str, records: list[dict]) -> Records:
    """Some records of a table, whose fields can be read safely."""
    return Records(records, f"{nusc.table_root}/{table}.json:", f"unpack the {nusc.version} tables again")


def _samples_of(nusc: NuScenes, scenes: Records) -> tuple[Records, list[int]]:
    """The samples of the scenes in time, and the position of each one's scene."""
    scenes.follow("first_sample_token", partial(nusc.get, "sample"), "sample.json")
    found, scene_of, seen = [], [], set()
    for index, scene in enumerate(scenes.records):
        token = scene["first_sample_token"]
        while token:
            if token in seen:
                raise UserError(
                    f"{nusc.table_root}/sample.json: record {token}: two `next` lead to it, one at most is expected; "
                    f"unpack the {nusc.version} tables again"
                )
            seen.add(token)
            found.append(nusc.get("sample", token))
            scene_of.append(index)
            last = _checked(nusc, "sample", found[-1:])
            (token,) = last.values("next", str)
            if token:
                last.follow("next", partial(nusc.get, "sample"), "sample.json")
    return _checked(nusc, "sample", found), scene_of


def _sensor_readings(nusc: NuScenes, samples: Sequence[dict]) -> list[list[dict]]:
    """The sample_data records of _CHANNELS of each sample."""
    for sample in samples:
        for channel in _CHANNELS:
            if channel not in sample["data"]:
                raise UserError(
                    f"{nusc.table_root}/sample_data.json: sample {sample['token']} has no {channel} key frame, "
                    f"all of {', '.join(_CHANNELS)} are expected; unpack the tables again"
                )
    return [[nusc.get("sample_data", sample["data"][channel]) for channel in _CHANNELS] for sample in samples]


def _mounts(nusc: NuScenes, readings: Records) -> Records:
    """Where and how each reading's sensor is mounted."""
    mounts = readings.follow(
        "calibrated_sensor_token", partial(nusc.get, "calibrated_sensor"), "calibrated_sensor.json"
    )
    return _checked(nusc, "calibrated_sensor", mounts)


def _poses(nusc: NuScenes, readings: list[list[dict]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Camera to level LiDAR frame [N, V, 4, 4], level LiDAR to global and level ego to global [N, 4, 4].

    Every sensor has its own ego pose at its own time, and the way between two of them leads through the
    global frame, so what the car moved meanwhile is made up for.
    """
    every = _checked(nusc, "sample_data", [reading for row in readings for reading in row])
    ego = every.follow("ego_pose_token", partial(nusc.get, "ego_pose"), "ego_pose.json")

    def matrices(records: Records) -> np.ndarray:
        rotation = records.numbers("rotation", (4,))
        wrong = np.flatnonzero(np.abs(np.linalg.norm(rotation, axis=1) - 1) > _UNIT_TOLERANCE)
        if len(wrong):
            raise records.error(wrong[0], "rotation", "a unit quaternion w, x, y, z is expected")
        poses = pose_matrix(records.numbers("translation", (3,)), rotation)
        return poses.reshape(len(readings), len(_CHANNELS), 4, 4)  # [N, S, 4, 4]

    ego2global = matrices(_checked(nusc, "ego_pose", ego))
    sensor2global = ego2global @ matrices(_mounts(nusc, every))
    lidar2global = without_roll_and_pitch(sensor2global[:, -1])
    cam2lidar = invert_rigid(lidar2global)[:, None] @ sensor2global[:, :-1]
    return cam2lidar, lidar2global, without_roll_and_pitch(ego2global[:, -1])
