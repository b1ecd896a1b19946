"""Made-up key frames: a nuScenes-like camera rig, random or painted content."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.geometry import invert_rigid
from data.gt_cache import GTCache, write_gt_cache
from data.records import SampleRecord
from tests.pinhole import project_to_image
from utils.frame import CAMERAS, PC_RANGES

META = {
    "split": "mini_train",
    "version": "v1.0-mini",
    "devkit_version": "1.2.0",
    "pc_range": list(PC_RANGES["60x30"]),
    "gt_style": "maptr",
}
_YAWS_DEG = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)  # counter-clockwise from straight ahead, as CAMERAS
PAINT = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # colour of each class in a painted record
GROUND_Z = -1.84


def make_rig(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics [V, 3, 3] of images `width` pixels wide (16:9) and camera-to-LiDAR poses [V, 4, 4]."""
    intrinsics = np.tile(np.eye(3), (len(CAMERAS), 1, 1))
    cam2lidar = np.tile(np.eye(4), (len(CAMERAS), 1, 1))
    for v, yaw in enumerate(np.deg2rad(_YAWS_DEG)):
        focal = (809.0 if CAMERAS[v] == "CAM_BACK" else 1266.0) * width / 1600
        intrinsics[v, :2, :2] *= focal
        intrinsics[v, :2, 2] = width * 0.507, width * 0.29
        right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        forward = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        cam2lidar[v, :3, :3] = np.stack([right, [0.0, 0.0, -1.0], forward], axis=1)
        cam2lidar[v, :3, 3] = 0.7 * forward + [0.05 * v, 0.0, -0.3]
    return intrinsics, cam2lidar


def make_record(index: int, labels: np.ndarray, pts_m: list[np.ndarray], width: int = 1600) -> SampleRecord:
    """A record with these instances and the made-up rig."""
    intrinsics, cam2lidar = make_rig(width)
    return SampleRecord(
        sample_token=f"sample{index:06d}",
        scene_name=f"scene-{index // 3:04d}",
        location=("boston-seaport", "singapore-onenorth")[index % 2],
        timestamp=1_532_402_927_000_000 + index,
        image_paths=tuple(f"samples/{camera}/{index}.jpg" for camera in CAMERAS),
        image_sizes=np.tile([width, width * 9 // 16], (len(CAMERAS), 1)),
        camera_intrinsic=intrinsics,
        cam2lidar=cam2lidar,
        lidar2global=np.eye(4),
        ego2global=np.eye(4),
        ground_z=GROUND_Z,
        labels=labels,
        pts_m=pts_m,
    )


def make_random_records(count: int, seed: int = 0) -> list[SampleRecord]:
    """Records with zero to four random instances each."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        labels = rng.integers(0, 3, rng.integers(0, 5))
        pts_m = [rng.uniform(-14, 14, (rng.integers(2, 7), 2)).astype(np.float32) for _ in labels]
        records.append(make_record(index, labels, pts_m))
    return records


def make_painted_cache(folder: Path, width: int = 800) -> GTCache:
    """A cache of one sample in `folder`, whose JPEGs show its ground truth painted on a dark road.

    Left and right differ, so that a mistaken mirror shows.
    """
    lines = [
        (0, [[-3.0, 10.0], [-3.0, 29.0]]),
        (0, [[-3.0, -29.0], [-3.0, 4.0]]),
        (0, [[2.0, -28.0], [1.0, 3.0]]),
        (1, [[-5.0, 5.0], [-5.0, 9.0], [5.5, 9.0], [5.5, 5.0], [-5.0, 5.0]]),
        (2, [[7.5, -29.5], [8.0, 0.0], [9.5, 29.0]]),
        (2, [[-11.0, -29.5], [-10.0, 29.5]]),
    ]
    labels = np.array([label for label, _ in lines])
    record = make_record(0, labels, [np.array(pts, np.float32) for _, pts in lines], width)
    for v, path in enumerate(record.image_paths):
        image = Image.new("RGB", tuple(record.image_sizes[v].tolist()), (60, 60, 60))
        draw = ImageDraw.Draw(image)
        for label, pts in lines:
            _paint(draw, np.array(pts), PAINT[label], record.camera_intrinsic[v], record.cam2lidar[v])
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / path, quality=95, subsampling=0)
    write_gt_cache(folder / "cache.safetensors", [record], META)
    return GTCache.open(folder / "cache.safetensors")


def _paint(draw, pts: np.ndarray, colour: tuple, intrinsic: np.ndarray, cam2lidar: np.ndarray) -> None:
    """Draw a line 0.3 m wide on the ground, as discs 2 cm apart."""
    lidar2img = np.eye(4)
    lidar2img[:3] = intrinsic @ invert_rigid(cam2lidar)[:3]
    for start, end in zip(pts[:-1], pts[1:], strict=True):
        steps = int(np.linalg.norm(end - start) / 0.02)
        ground = start + (end - start) * np.linspace(0, 1, steps)[:, None]
        pixels, depth = project_to_image(np.column_stack([ground, np.full(steps, GROUND_Z)]), lidar2img)
        seen = depth > 0.5
        radius = np.maximum(0.15 * intrinsic[0, 0] / depth[seen], 1.0)
        for (u, v), r in zip(pixels[seen], radius, strict=True):
            draw.ellipse((u - r, v - 0.3 * r, u + r, v + 0.3 * r), fill=colour)
