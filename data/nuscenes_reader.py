"""nuScenes tables to SampleRecords, by the official devkit. Only tools import this."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nuscenes import NuScenes

from data.geometry import invert_rigid, pose_matrix, without_roll_and_pitch
from data.images import image_exists
from data.records import SampleRecord
from data.splits import scene_names_of
from utils.errors import UserError
from utils.frame import CAMERAS

# The sensor axis S of the arrays below: six cameras, then the LiDAR.
_CHANNELS = (*CAMERAS, "LIDAR_TOP")


def load_tables(dataroot: str | Path, version: str) -> NuScenes:
    """Load all tables of one version. Raises UserError for a missing dataroot, version, table or basemap."""
    dataroot = Path(dataroot)
    if not dataroot.is_dir():
        raise UserError(
            f"{dataroot}: no such folder; give the nuScenes folder with --dataroot or NUSCENES_DATAROOT"
        )
    if not (dataroot / version).is_dir():
        there = sorted(path.name for path in dataroot.glob("v1.0*") if path.is_dir())
        raise UserError(
            f"{dataroot / version}: no such folder, versions there: {', '.join(there) or 'none'}; "
            f"give one of them with --version or unpack the {version} tables"
        )
    try:
        return NuScenes(version=version, dataroot=str(dataroot), verbose=False)
    except (OSError, AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"{dataroot / version}: the tables cannot be read ({type(error).__name__}: {error}); "
            f"unpack the {version} tables and the basemaps again"
        ) from error


def read_records(nusc: NuScenes, split: str | None) -> list[SampleRecord]:
    """The key frames of a resolved split, or of all scenes, scene by scene in time, without ground truth yet.

    Raises UserError when no scene of the split is there or a sample lacks a sensor.
    """
    scenes = nusc.scene
    if split is not None:
        names = scene_names_of(split)
        scenes = [scene for scene in nusc.scene if scene["name"] in names]
    if not scenes:
        raise UserError(
            f"{nusc.table_root}: none of its {len(nusc.scene)} scenes is in split {split}; "
            f"choose another --split or --version"
        )
    samples, scene_of = [], []
    for scene in scenes:
        token = scene["first_sample_token"]
        while token:
            samples.append(nusc.get("sample", token))
            scene_of.append(scene)
            token = samples[-1]["next"]
    readings = [_sensor_readings(nusc, sample) for sample in samples]
    camera_to_lidar, lidar_to_global, ego_to_global = _poses(nusc, readings)
    no_labels, no_lines = np.zeros(0, np.int64), []
    return [
        SampleRecord(
            sample_token=sample["token"],
            scene_name=scene["name"],
            location=nusc.get("log", scene["log_token"])["location"],
            timestamp=sample["timestamp"],
            image_paths=tuple(reading["filename"] for reading in sensors[:-1]),
            image_sizes=np.array([(reading["width"], reading["height"]) for reading in sensors[:-1]]),
            camera_intrinsic=np.array([_calibration(nusc, r)["camera_intrinsic"] for r in sensors[:-1]]),
            cam2lidar=cam2lidar,
            lidar2global=lidar2global,
            ego2global=ego2global,
            ground_z=-float(lidar2global[2, 3]),  # the road is at global z = 0
            labels=no_labels,
            pts_m=no_lines,
            scene_description=scene["description"],
        )
        for sample, scene, sensors, cam2lidar, lidar2global, ego2global in zip(
            samples, scene_of, readings, camera_to_lidar, lidar_to_global, ego_to_global, strict=True
        )
    ]


def check_images(records: Sequence[SampleRecord], dataroot: str | Path) -> None:
    """Raise UserError for the first image that is not there."""
    for record in records:
        for path in record.image_paths:
            if not image_exists(dataroot, path):
                raise UserError(
                    f"{Path(dataroot) / path}: no such image, sample {record.sample_token} needs it; "
                    f"unpack the nuScenes archive with it or give --skip-image-check"
                )


def _sensor_readings(nusc: NuScenes, sample: dict) -> list[dict]:
    """The sample_data records of _CHANNELS."""
    for channel in _CHANNELS:
        if channel not in sample["data"]:
            raise UserError(
                f"{nusc.table_root}/sample_data.json: sample {sample['token']} has no {channel} key frame, "
                f"all of {', '.join(_CHANNELS)} are expected; unpack the tables again"
            )
    return [nusc.get("sample_data", sample["data"][channel]) for channel in _CHANNELS]


def _calibration(nusc: NuScenes, reading: dict) -> dict:
    return nusc.get("calibrated_sensor", reading["calibrated_sensor_token"])


def _poses(nusc: NuScenes, readings: list[list[dict]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Camera to level LiDAR frame [N, V, 4, 4], level LiDAR to global and level ego to global [N, 4, 4].

    Every sensor has its own ego pose at its own time, and the way between two of them leads through the
    global frame, so what the car moved meanwhile is made up for.
    """
    ego = [[nusc.get("ego_pose", reading["ego_pose_token"]) for reading in row] for row in readings]
    mounted = [[_calibration(nusc, reading) for reading in row] for row in readings]

    def matrices(records: list[list[dict]]) -> np.ndarray:
        translation = np.array([[record["translation"] for record in row] for row in records])  # [N, S, 3]
        rotation = np.array([[record["rotation"] for record in row] for row in records])  # [N, S, 4]
        return pose_matrix(translation, rotation)

    ego2global = matrices(ego)  # [N, S, 4, 4]
    sensor2global = ego2global @ matrices(mounted)
    lidar2global = without_roll_and_pitch(sensor2global[:, -1])
    cam2lidar = invert_rigid(lidar2global)[:, None] @ sensor2global[:, :-1]
    return cam2lidar, lidar2global, without_roll_and_pitch(ego2global[:, -1])
