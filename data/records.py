"""One key frame as a record, and many records as a few flat tensors.

N samples, V cameras, T instances and K polyline points in the whole split:

    timestamp [N] int64 us         camera_intrinsic [N,V,3,3] f64     instance_offsets [N+1] int64 into labels
    scene, location [N] int32      cam2lidar [N,V,4,4] f64            labels [T] uint8
    ground_z [N] f64 metres        lidar2global [N,4,4] f64           point_offsets [T+1] int64 into points
    image_sizes [N,V,2] int32      ego2global [N,4,4] f64             points [K,2] f32 metres, LiDAR frame
    (W, H)                         sample_tokens, image_paths: bytes with offsets [N+1], [N*V+1]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.frame import CAMERAS

# safetensors dtype -> numpy dtype
DTYPES = {"I64": "<i8", "F64": "<f8", "I32": "<i4", "F32": "<f4", "U8": "|u1"}
# The tensors in the order of the file, widest numbers first, so that each starts at a multiple of its width.
TENSORS = {
    "timestamp": "I64",
    "sample_tokens_offsets": "I64",
    "image_paths_offsets": "I64",
    "instance_offsets": "I64",
    "point_offsets": "I64",
    "camera_intrinsic": "F64",
    "cam2lidar": "F64",
    "lidar2global": "F64",
    "ego2global": "F64",
    "ground_z": "F64",
    "image_sizes": "I32",
    "scene": "I32",
    "location": "I32",
    "points": "F32",
    "labels": "U8",
    "sample_tokens": "U8",
    "image_paths": "U8",
}


@dataclass(frozen=True)
class SampleRecord:
    """One key frame. Matrices are homogeneous; the LiDAR frame is the level one of utils/frame.py."""

    sample_token: str
    scene_name: str
    location: str  # city of the map, for instance boston-seaport
    timestamp: int  # microseconds
    image_paths: tuple[str, ...]  # V paths relative to the dataroot, in the order of CAMERAS
    image_sizes: np.ndarray  # [V, 2] int, width and height in pixels
    camera_intrinsic: np.ndarray  # [V, 3, 3] float64
    cam2lidar: np.ndarray  # [V, 4, 4] float64, each camera at its own timestamp
    lidar2global: np.ndarray  # [4, 4] float64, yaw and translation only
    ego2global: np.ndarray  # [4, 4] float64, the car at LIDAR_TOP's time, yaw and translation only
    ground_z: float  # height of the road plane in the LiDAR frame, metres
    labels: np.ndarray  # [G] int64, index into CLASSES
    pts_m: list[np.ndarray]  # G arrays [n, 2] float32, metres; a closed ring repeats its first point
    scene_description: str = ""  # nuScenes' own words on the scene, the same for all its samples


def records_to_tensors(
    records: Sequence[SampleRecord],
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """The TENSORS, and the names of the scenes and locations that `scene` and `location` point into.

    Raises ValueError, naming the sample, for an array of another shape than SampleRecord says.
    """
    scenes = sorted({record.scene_name for record in records})
    locations = sorted({record.location for record in records})
    lines = [pts for record in records for pts in record.pts_m]
    token_bytes, token_offsets = _string_table([record.sample_token for record in records])
    path_bytes, path_offsets = _string_table([path for record in records for path in record.image_paths])
    arrays = {
        "sample_tokens": token_bytes,
        "sample_tokens_offsets": token_offsets,
        "image_paths": path_bytes,
        "image_paths_offsets": path_offsets,
        "instance_offsets": _offsets([len(record.pts_m) for record in records]),
        "point_offsets": _offsets([len(pts) for pts in lines]),
        "scene": np.searchsorted(scenes, [record.scene_name for record in records]),
        "location": np.searchsorted(locations, [record.location for record in records]),
        "points": np.concatenate([*lines, np.zeros((0, 2), np.float32)]),
        "labels": np.concatenate([*(record.labels for record in records), np.zeros(0, np.int64)]),
    }
    cameras = len(CAMERAS)
    shapes = {
        "timestamp": (),
        "ground_z": (),
        "lidar2global": (4, 4),
        "ego2global": (4, 4),
        "image_sizes": (cameras, 2),
        "camera_intrinsic": (cameras, 3, 3),
        "cam2lidar": (cameras, 4, 4),
    }
    for name, shape in shapes.items():
        values = [getattr(record, name) for record in records]
        for record, value in zip(records, values, strict=True):
            if np.shape(value) != shape:
                found = f"{name} of shape {np.shape(value)}, expected {shape}"
                raise ValueError(f"sample {record.sample_token}: {found}")
        arrays[name] = np.array(values).reshape(len(records), *shape)  # [0, *shape] without records
    assert len(arrays["labels"]) == len(lines), "a label for every instance"
    return {name: arrays[name].astype(DTYPES[kind]) for name, kind in TENSORS.items()}, scenes, locations


def _string_table(strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Strings as one run of UTF-8 bytes and offsets [len + 1]."""
    encoded = [string.encode() for string in strings]
    return np.frombuffer(b"".join(encoded), np.uint8), _offsets([len(item) for item in encoded])


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
