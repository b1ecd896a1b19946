"""The map of the synthetic world lies on the paint of its images, to within a fraction of a metre."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.nuscenes import NuScenes

from data.geometry import invert_rigid, pose_matrix
from data.polylines import resample_lines
from data.synthetic.plan import LOCATIONS
from tests.pinhole import project_to_image
from utils.frame import CAMERAS

BESIDE = 0.75  # metres from a line to the bare ground beside it
NEAR = 12.0  # metres from the camera within which lines are compared
VOTES_NEEDED = {"divider": 20, "boundary": 20, "ped_crossing": 8}  # for the test to mean something


@pytest.fixture(scope="module")
def nusc(synthetic_world: Path) -> NuScenes:
    return NuScenes("v1.0-trainval", str(synthetic_world), verbose=False)


@pytest.fixture(scope="module")
def city_maps(synthetic_world: Path) -> dict[str, NuScenesMap]:
    return {location: NuScenesMap(str(synthetic_world), location) for location in LOCATIONS}


def location_of(nusc: NuScenes, sample: dict) -> str:
    scene = nusc.get("scene", sample["scene_token"])
    return nusc.get("log", scene["log_token"])["location"]


def pose_of(record: dict) -> np.ndarray:
    return pose_matrix(np.array(record["translation"]), np.array(record["rotation"]))


def polygons_of(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    return list(getattr(geometry, "geoms", [geometry]))


def road_area(city: NuScenesMap) -> shapely.Geometry:
    polygons = [city.extract_polygon(record["polygon_token"]) for record in (*city.road_segment, *city.lane)]
    return shapely.union_all(polygons)


def map_lines(city: NuScenesMap) -> dict[str, list[np.ndarray]]:
    """Lines [N, 2] in global metres by class; crossings as their long edges, counter-clockwise."""
    lines: dict[str, list[np.ndarray]] = {"divider": [], "boundary": [], "ped_crossing": []}
    for layer in ("road_divider", "lane_divider"):
        for record in getattr(city, layer):
            lines["divider"].append(np.array(city.extract_line(record["line_token"]).coords))
    for piece in polygons_of(road_area(city)):
        lines["boundary"] += [np.array(ring.coords) for ring in (piece.exterior, *piece.interiors)]
    for record in city.ped_crossing:
        ring = np.array(shapely.geometry.polygon.orient(city.extract_polygon(record["polygon_token"])).exterior.coords)
        half = (len(ring) - 1) // 2
        lines["ped_crossing"] += [ring[:half], ring[half : 2 * half]]
    return lines


def votes_on_paint(nusc: NuScenes, city_maps: dict[str, NuScenesMap], shift: float) -> dict[str, list[bool]]:
    """For each stretch of a map line in each image: is the image brighter there than on the ground beside it?

    `shift` moves all lines sideways, in metres.
    """
    all_lines = {name: map_lines(city) for name, city in city_maps.items() if city.lane}
    votes: dict[str, list[bool]] = {"divider": [], "boundary": [], "ped_crossing": []}
    for sample in nusc.sample:
        for camera in CAMERAS:
            record = nusc.get("sample_data", sample["data"][camera])
            calibration = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
            camera2global = pose_of(nusc.get("ego_pose", record["ego_pose_token"])) @ pose_of(calibration)
            projection = np.eye(4)
            projection[:3, :3] = calibration["camera_intrinsic"]
            projection = projection @ invert_rigid(camera2global)
            image = cv2.imread(nusc.get_sample_data_path(record["token"])).max(axis=2).astype(np.float32)
            for kind, lines in all_lines[location_of(nusc, sample)].items():
                for line in lines:
                    vote = _vote(image, projection, camera2global[:2, 3], line, kind, shift)
                    if vote is not None:
                        votes[kind].append(vote)
    return votes


def _vote(image, projection, center, line, kind, shift) -> bool | None:
    """None: too little of the line is in sight nearby."""
    if np.linalg.norm(line - center, axis=1).min() > 40:
        return None
    length = np.linalg.norm(np.diff(line, axis=0), axis=1).sum()
    (pts,) = resample_lines([line], int(length / 0.25) + 2)
    step = np.gradient(pts, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.maximum(np.linalg.norm(step, axis=1), 1e-9)[:, None]
    pts = pts + shift * normal
    offsets = {"on": (-0.12, 0.0, 0.12), "beside": (-BESIDE, BESIDE)}
    if kind == "ped_crossing":  # inside is on the left of a counter-clockwise edge; stripes against bare asphalt
        offsets = {"on": (0.3,), "beside": (-0.5,)}
    near = np.linalg.norm(pts - center, axis=1) < NEAR
    brightness = {}
    for name, sideways in offsets.items():
        for offset in sideways:
            ground = np.concatenate([pts + offset * normal, np.zeros((len(pts), 1))], axis=1)
            pixels, depth = project_to_image(ground, projection)
            inside = (pixels > 1).all(axis=1) & (pixels < np.array(image.shape[::-1]) - 2).all(axis=1)
            near &= inside & (depth > 1.0)
            pixels = np.where(np.abs(pixels) < 1e4, pixels, 0).astype(np.float32)
            brightness[name, offset] = cv2.remap(image, pixels[None], None, cv2.INTER_LINEAR)[0]
    if near.sum() < 24:
        return None
    if kind == "ped_crossing":  # half of it is painted
        on_level, beside_level = np.mean, np.mean
    else:  # a broken line is painted on a quarter of its length or more
        on_level, beside_level = (lambda values: np.percentile(values, 80)), np.median
    on = on_level(np.mean([brightness["on", offset][near] for offset in offsets["on"]], axis=0))
    beside = max(beside_level(brightness["beside", offset][near]) for offset in offsets["beside"])
    return bool(on > 1.08 * beside)


def test_map_lines_lie_on_the_rendered_paint(nusc: NuScenes, city_maps: dict[str, NuScenesMap]):
    straight = votes_on_paint(nusc, city_maps, shift=0.0)
    shifted = votes_on_paint(nusc, city_maps, shift=1.0)
    for kind in straight:
        assert len(straight[kind]) >= VOTES_NEEDED[kind], kind
        assert np.mean(straight[kind]) > 0.75, kind  # cars and hedges hide the rest
        assert np.mean(shifted[kind]) < 0.35, kind
