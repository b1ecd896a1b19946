"""The synthetic world: loads with the devkit, repeats to the byte, and its map lies on its paint."""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from nuscenes.map_expansion.arcline_path_utils import discretize_lane
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.splits import create_splits_scenes

from data.geometry import pose_matrix
from data.synthetic import world as world_module
from data.synthetic.plan import LOCATIONS, SAMPLE_INTERVAL, WorldSettings, plan_world
from data.synthetic.world import MARKER, write_world
from tools import make_synthetic_nuscenes
from utils.errors import UserError
from utils.frame import CAMERAS

VERSION = "v1.0-trainval"
SMALL = WorldSettings(VERSION, ("scene-0001",), ("scene-0003",), 2, 3, (128, 72))


@pytest.fixture(scope="module")
def nusc(synthetic_world: Path) -> NuScenes:
    return NuScenes(VERSION, str(synthetic_world), verbose=False)


@pytest.fixture(scope="module")
def city_maps(synthetic_world: Path) -> dict[str, NuScenesMap]:
    return {location: NuScenesMap(str(synthetic_world), location) for location in LOCATIONS}


def tree_digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def location_of(nusc: NuScenes, sample: dict) -> str:
    scene = nusc.get("scene", sample["scene_token"])
    return nusc.get("log", scene["log_token"])["location"]


def pose_of(record: dict) -> np.ndarray:
    return pose_matrix(np.array(record["translation"]), np.array(record["rotation"]))


def test_the_devkit_loads_every_file(nusc: NuScenes, synthetic_world: Path):
    assert len(nusc.sample) == 12 and len(nusc.scene) == 3
    splits = create_splits_scenes()
    names = {scene["name"] for scene in nusc.scene}
    assert len(names & set(splits["train"])) == 2 and len(names & set(splits["val"])) == 1
    for sample in nusc.sample:
        for camera in CAMERAS:
            path, _, intrinsic = nusc.get_sample_data(sample["data"][camera])
            record = nusc.get("sample_data", sample["data"][camera])
            assert cv2.imread(path).shape == (record["height"], record["width"], 3) == (225, 400, 3)
            assert intrinsic.shape == (3, 3)
            assert abs(record["timestamp"] - sample["timestamp"]) <= 50_000
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        assert LidarPointCloud.from_file(path).points.shape[1] > 500
        assert len(boxes) == len(sample["anns"])
    assert nusc.sample_annotation and all(nusc.box_velocity(a["token"]).shape == (3,) for a in nusc.sample_annotation)


def test_the_basemap_is_white_where_the_car_drives(nusc: NuScenes):
    for sample in nusc.sample[::4]:
        log = nusc.get("log", nusc.get("scene", sample["scene_token"])["log_token"])
        mask = nusc.get("map", log["map_token"])["mask"]
        pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
        x, y, _ = pose["translation"]
        assert mask.is_on_mask(x, y).all() and not mask.is_on_mask(5.0, 5.0).any()


def check_chain(records: dict[str, dict], first: str, last: str, length: int) -> list[dict]:
    chain = [records[first]]
    while chain[-1]["next"]:
        assert records[chain[-1]["next"]]["prev"] == chain[-1]["token"]
        chain.append(records[chain[-1]["next"]])
    assert chain[0]["prev"] == "" and chain[-1]["token"] == last and len(chain) == length
    return chain


def test_chains_of_samples_sample_data_and_annotations(nusc: NuScenes):
    samples = {record["token"]: record for record in nusc.sample}
    sample_data = {record["token"]: record for record in nusc.sample_data}
    annotations = {record["token"]: record for record in nusc.sample_annotation}
    for scene in nusc.scene:
        tokens = (scene["first_sample_token"], scene["last_sample_token"])
        chain = check_chain(samples, *tokens, scene["nbr_samples"])
        gaps = np.diff([sample["timestamp"] for sample in chain])
        assert np.all(np.abs(gaps - 500_000) < 5_000)
        for channel in (*CAMERAS, "LIDAR_TOP"):
            ends = chain[0]["data"][channel], chain[-1]["data"][channel]
            check_chain(sample_data, *ends, scene["nbr_samples"])
    for instance in nusc.instance:
        ends = instance["first_annotation_token"], instance["last_annotation_token"]
        check_chain(annotations, *ends, instance["nbr_annotations"])
    for table in nusc.table_names:
        tokens = [record["token"] for record in getattr(nusc, table)]
        assert len(set(tokens)) == len(tokens), table


def test_the_ego_pose_moves_with_the_camera_times(nusc: NuScenes):
    """Between its own time and the LiDAR's a camera moves as far as the car's speed says."""
    for scene in nusc.scene:
        first, second = (nusc.get("sample", scene["first_sample_token"]), None)
        second = nusc.get("sample", first["next"])
        poses = {}
        for sample in (first, second):
            for channel in ("CAM_FRONT_LEFT", "LIDAR_TOP"):
                record = nusc.get("sample_data", sample["data"][channel])
                pose = nusc.get("ego_pose", record["ego_pose_token"])
                assert pose["timestamp"] == record["timestamp"] and pose["translation"][2] == 0.0
                poses[sample["token"], channel] = (record["timestamp"] / 1e6, np.array(pose["translation"]))
        (t0, p0), (t1, p1) = poses[first["token"], "LIDAR_TOP"], poses[second["token"], "LIDAR_TOP"]
        speed = np.linalg.norm(p1 - p0) / (t1 - t0)
        t_camera, p_camera = poses[second["token"], "CAM_FRONT_LEFT"]
        assert 0.0 <= speed < 16.0
        assert np.linalg.norm(p1 - p_camera) == pytest.approx(speed * (t1 - t_camera), abs=0.08)


def test_map_layers(city_maps: dict[str, NuScenesMap]):
    used = [city for city in city_maps.values() if city.road_segment]
    assert {city.map_name for city in used} == {"boston-seaport", "singapore-onenorth"}
    for city in used:
        for layer in ("drivable_area", "road_block", "lane", "ped_crossing", "stop_line", "lane_connector"):
            assert getattr(city, layer), layer
        assert city.road_divider or city.lane_divider
        for layer in ("road_segment", "lane", "ped_crossing", "stop_line", "road_block", "walkway"):
            for record in getattr(city, layer):
                assert city.extract_polygon(record["polygon_token"]).is_valid, layer
        nodes = np.array([(node["x"], node["y"]) for node in city.node])
        assert nodes.min() > 0 and np.all(nodes < city.canvas_edge)
        for lane in city.lane:
            assert city.get_outgoing_lane_ids(lane["token"]) and city.get_incoming_lane_ids(lane["token"])
            assert len(discretize_lane(city.get_arcline_path(lane["token"]), 1.0)) > 10
        x, y = nodes.mean(axis=0)
        geometry = city.get_map_geom((x, y, 200, 200), 30.0, ["road_segment", "lane_divider"])
        assert sum(len(items) for _, items in geometry) > 0


def road_area(city: NuScenesMap) -> shapely.Geometry:
    polygons = [city.extract_polygon(record["polygon_token"]) for record in (*city.road_segment, *city.lane)]
    return shapely.union_all(polygons)


def test_towns_have_medians_somewhere():
    settings = replace(SMALL, train_scenes=tuple(create_splits_scenes()["train"][:6]), samples_per_scene=1)
    plan = world_module.plan_world(settings)
    holes = [ring for town in plan.towns.values() for segment in town.segments for ring in segment.holes]
    open_medians = sum(len(part.interiors) for town in plan.towns.values() for part in polygons_of(town.drivable))
    assert len(holes) > 3 and open_medians > len(holes)


def polygons_of(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    return list(getattr(geometry, "geoms", [geometry]))


def test_train_and_val_share_no_street(nusc: NuScenes, city_maps: dict[str, NuScenesMap]):
    """Boston holds a train and a val town: two separate pieces of road, each driven by its own split."""
    pieces = polygons_of(road_area(city_maps["boston-seaport"]))
    val_scenes = set(create_splits_scenes()["val"])
    driven: dict[bool, set[int]] = {True: set(), False: set()}
    for sample in nusc.sample:
        if location_of(nusc, sample) != "boston-seaport":
            continue
        record = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        x, y, _ = nusc.get("ego_pose", record["ego_pose_token"])["translation"]
        on = [i for i, piece in enumerate(pieces) if piece.contains(shapely.Point(x, y))]
        assert len(on) == 1, "the car is off the road"
        driven[nusc.get("scene", sample["scene_token"])["name"] in val_scenes].update(on)
    assert driven[True] and driven[False] and not driven[True] & driven[False]
    train, val = (pieces[next(iter(driven[split]))] for split in (False, True))
    assert train.distance(val) > 60.0


def test_traffic_keeps_to_its_side(nusc: NuScenes, city_maps: dict[str, NuScenesMap]):
    """The line between the directions is left of a lane in boston, right of it in singapore; cars follow lanes."""
    for location, left_is_center in (("boston-seaport", True), ("singapore-onenorth", False)):
        city = city_maps[location]
        dividers = [city.extract_line(record["line_token"]) for record in city.road_divider]
        checked = 0
        for lane in city.lane:
            path = np.array(discretize_lane(city.get_arcline_path(lane["token"]), 1.0))
            x, y, yaw = path[len(path) // 2]
            near = [line for line in dividers if line.distance(shapely.Point(x, y)) < 3.0]
            for line in near:
                on_line = line.interpolate(line.project(shapely.Point(x, y)))
                sideways = -np.sin(yaw) * (on_line.x - x) + np.cos(yaw) * (on_line.y - y)
                assert (sideways > 0) == left_is_center
                checked += 1
        assert checked >= 4
    for sample in nusc.sample:
        city = city_maps[location_of(nusc, sample)]
        record = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        pose = pose_of(nusc.get("ego_pose", record["ego_pose_token"]))
        lane = city.get_closest_lane(pose[0, 3], pose[1, 3], radius=3)
        path = np.array(discretize_lane(city.get_arcline_path(lane), 0.5))
        nearest = path[np.linalg.norm(path[:, :2] - pose[:2, 3], axis=1).argmin()]
        assert np.linalg.norm(nearest[:2] - pose[:2, 3]) < 1.2
        assert np.cos(nearest[2] - np.arctan2(pose[1, 0], pose[0, 0])) > 0.7


def test_key_frames_far_apart_show_other_places_and_as_much_traffic():
    """Four key frames in the 20 seconds of a scene of nuScenes, instead of in its first 2."""
    scenes = tuple(create_splits_scenes()["train"][:24])
    way, cars = {}, {}
    for interval in (SAMPLE_INTERVAL, 5.0):
        plan = plan_world(replace(SMALL, train_scenes=scenes, samples_per_scene=4, sample_interval=interval))
        way[interval], cars[interval] = [], []
        for scene in plan.scenes:
            times = [scene.motion_time(each["LIDAR_TOP"]) for each in scene.sensor_times]
            np.testing.assert_allclose(np.diff(times), interval, atol=0.01)
            places = np.array([scene.ego.trajectory.at(time)[:2] for time in times])
            way[interval].append(np.linalg.norm(places[-1] - places[0]))
            for time, place in zip(times, places, strict=True):
                others = np.array([agent.trajectory.at(time)[:2] for agent in scene.agents]).reshape(-1, 2)
                cars[interval].append(int((np.linalg.norm(others - place, axis=1) < 40.0).sum()))
    assert np.median(way[SAMPLE_INTERVAL]) < 20.0 and np.median(way[5.0]) > 60.0
    assert 0.7 < np.mean(cars[5.0]) / np.mean(cars[SAMPLE_INTERVAL]) < 1.4


def test_same_seed_same_bytes_for_any_number_of_workers(tmp_path: Path):
    write_world(tmp_path / "one", SMALL, num_workers=1)
    write_world(tmp_path / "two", SMALL, num_workers=2)
    write_world(tmp_path / "other", replace(SMALL, seed=4), num_workers=1)
    one, two, other = (tree_digest(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and len(one) > 40
    assert not set(one.values()) & {other[name] for name in other if name.endswith(".jpg")}


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_synthetic_nuscenes.py", *arguments])
    make_synthetic_nuscenes.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image-size", "1600"), "--image-size: 1600"),
        (("--image-size", "8x8"), "--image-size: 8x8"),
        (("--train-scenes", "0"), "--train-scenes: 0"),
        (("--val-scenes", "-1"), "--val-scenes: -1"),
        (("--samples-per-scene", "0"), "--samples-per-scene: 0"),
        (("--sample-interval", "0"), "--sample-interval: 0, at least 0.1 seconds"),
        (("--sample-interval", "nan"), "--sample-interval: nan"),
        (("--sample-interval", "150", "--samples-per-scene", "4"), "less than 600 for all 4 key frames"),
        (("--version", "v1.0-test"), "--version: v1.0-test"),
        (("--version", "v1.0-mini", "--train-scenes", "9"), "--train-scenes: 9, at most 8"),
        (("--version", "v1.0-mini", "--train-scenes", "8", "--val-scenes", "3"), "--val-scenes: 3, at most 2"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(monkeypatch, tmp_path: Path, arguments, message):
    with pytest.raises(UserError, match=message):
        run_tool(monkeypatch, "--out", str(tmp_path / "world"), *arguments)
    assert not list(tmp_path.iterdir())


def test_only_a_made_world_is_replaced(monkeypatch, tmp_path: Path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "precious.txt").write_text("keep")
    with pytest.raises(UserError, match="holds something else"):
        run_tool(monkeypatch, "--out", str(foreign), "--overwrite")
    assert (foreign / "precious.txt").read_text() == "keep"

    arguments = ["--out", str(tmp_path / "world"), "--train-scenes", "1", "--val-scenes", "1"]
    arguments += ["--samples-per-scene", "1", "--image-size", "96x64", "--version", "v1.0-mini", "--num-workers", "1"]
    run_tool(monkeypatch, *arguments)
    with pytest.raises(UserError, match="add --overwrite"):
        run_tool(monkeypatch, *arguments)
    run_tool(monkeypatch, *arguments, "--overwrite", "--seed", "5")
    assert json.loads((tmp_path / "world" / MARKER).read_text())["seed"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "world"]
    assert len(NuScenes("v1.0-mini", str(tmp_path / "world"), verbose=False).sample) == 2


def test_a_mount_point_and_a_full_disk_are_one_line(monkeypatch, tmp_path: Path):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world_module, "make_tables", full)
    with pytest.raises(UserError, match="cannot be written .No space left on device., nothing of the new world"):
        write_world(tmp_path / "world", replace(SMALL, samples_per_scene=1), num_workers=1)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(world_module.os.path, "ismount", lambda path: path == tmp_path / "world")
    with pytest.raises(UserError, match="world: is a mount point.*name a folder in it"):
        write_world(tmp_path / "world", SMALL, num_workers=1)


def test_a_world_that_cannot_be_replaced_stays(monkeypatch, tmp_path: Path):
    out, work = tmp_path / "world", tmp_path / "new"
    for folder in (out, work):
        folder.mkdir()
        (folder / MARKER).write_text(folder.name)
    replace_really = os.replace

    def refuse(source: Path, target: Path) -> None:
        if source == work:
            raise OSError(28, "No space left on device")
        replace_really(source, target)

    monkeypatch.setattr(world_module.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        world_module._move_into_place(work, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "world"]
    assert (out / MARKER).read_text() == "world"


def test_an_interrupted_run_leaves_nothing(monkeypatch, tmp_path: Path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(world_module, "make_tables", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "world", replace(SMALL, samples_per_scene=1), num_workers=1)
    assert not list(tmp_path.iterdir())


def test_the_test_set_lies_beside_the_other_version(monkeypatch, tmp_path: Path):
    world = tmp_path / "world"
    run_tool(monkeypatch, "--out", str(world), "--train-scenes", "1", "--val-scenes", "1", "--samples-per-scene", "1",
             "--image-size", "96x64", "--num-workers", "1", "--with-test-set")
    test_set = NuScenes("v1.0-test", str(world), verbose=False)
    assert len(test_set.sample) == 2 and not test_set.sample_annotation
    assert not {scene["name"] for scene in test_set.scene} & set().union(*create_splits_scenes().values())


def test_a_test_set_that_cannot_be_written_leaves_no_world(monkeypatch, tmp_path: Path):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world_module, "write_test_tables", fail)
    with pytest.raises(UserError, match="nothing of the new world is left"):
        write_world(tmp_path / "world", replace(SMALL, samples_per_scene=1), num_workers=1, test_set=True)
    assert not list(tmp_path.iterdir())
