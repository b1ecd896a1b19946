"""Frames that vectors are written in: LiDAR (the project's), ego (StreamMapNet's) and global map coordinates."""

import numpy as np

from data.geometry import invert_rigid, transform_plane
from data.records import SampleRecord
from evaluation.vectors import Vectors

METRIC_FRAMES = ("lidar", "ego", "global")


def lidar_to(frame: str, record: SampleRecord) -> np.ndarray:
    """Level transform [4, 4] from a sample's LiDAR frame to one of METRIC_FRAMES."""
    assert frame in METRIC_FRAMES, frame
    if frame == "lidar":
        return np.eye(4)
    return record.lidar2global if frame == "global" else invert_rigid(record.ego2global) @ record.lidar2global


def to_lidar(vectors: Vectors, frame: str, record: SampleRecord) -> Vectors:
    """Vectors given in one of METRIC_FRAMES in the LiDAR frame."""
    if frame == "lidar":
        return vectors
    matrix = invert_rigid(lidar_to(frame, record))
    return Vectors(vectors.labels, [transform_plane(pts, matrix) for pts in vectors.pts_m], vectors.scores)
