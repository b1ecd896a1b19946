import json
from dataclasses import replace

import numpy as np
import pytest
import shapely
from nuscenes import NuScenes
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.scripts.export_poses import REFERENCE_COORDINATES, derive_latlon

from data.gt_cache import GTCache
from evaluation.geojson import MAP_ORIGINS, in_frame, to_lon_lat, write_geojson
from evaluation.vectors import Vectors
from tests.made_records import make_record


def test_global_lines_lie_on_the_map_and_ego_starts_at_the_rear_axle(synthetic_world, caches):
    """The devkit's own map and calibration say where ground truth has to come to lie."""
    nusc = NuScenes("v1.0-trainval", str(synthetic_world), verbose=False)
    cache, compared = GTCache.open(caches["train"]), 0
    for record in cache:
        sample = nusc.get("sample", record.sample_token)
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        mounted = nusc.get("calibrated_sensor", lidar["calibrated_sensor_token"])["translation"]
        origin, ahead = in_frame(np.array([[0.0, 0.0], [0.0, 10.0]]), record, "ego")
        assert np.abs(origin - mounted[:2]).max() < 0.1, "the LiDAR is where it is mounted"
        np.testing.assert_allclose(ahead - origin, [10.0, 0.0], atol=0.3)  # the ego frame's x is forward

        city = NuScenesMap(str(synthetic_world), record.location)
        layers = ("road_divider", "lane_divider")
        dividers = [city.extract_line(row["line_token"]) for layer in layers for row in getattr(city, layer)]
        painted = shapely.union_all(dividers)
        for label, pts_m in zip(record.labels, record.pts_m, strict=True):
            if label == 0:
                points = shapely.points(in_frame(pts_m, record, "global"))
                assert shapely.distance(points, painted).max() < 0.01
                compared += 1
    assert compared > 10


@pytest.mark.parametrize("city", list(REFERENCE_COORDINATES))
def test_longitude_and_latitude_are_the_devkits(city):
    assert MAP_ORIGINS[city] == tuple(REFERENCE_COORDINATES[city])
    pts = np.random.default_rng(0).uniform(1.0, 3500.0, (50, 2))
    expected = derive_latlon(city, [{"timestamp": 0, "translation": [*xy, 0.0]} for xy in pts])
    expected = [(place["longitude"], place["latitude"]) for place in expected]
    np.testing.assert_allclose(to_lon_lat(pts, city), expected, rtol=0, atol=1e-12)
    # What the devkit's bearing cannot do: due east, the origin itself, west and south of it.
    (lon, lat), west = MAP_ORIGINS[city][::-1], to_lon_lat(np.array([[-500.0, -300.0]]), city)[0]
    assert west[0] < lon and west[1] < lat
    np.testing.assert_allclose(to_lon_lat(np.zeros((1, 2)), city), [[lon, lat]], atol=1e-12)
    assert to_lon_lat(np.zeros((0, 2)), city).shape == (0, 2)


def test_geojson_holds_lines_and_counter_clockwise_rings(tmp_path):
    square = np.array([[0.0, 0.0], [0.0, 4.0], [6.0, 4.0], [6.0, 0.0], [0.3, 0.2]])  # clockwise, nearly closed
    record = make_record(0, np.zeros(0, np.int64), [])
    turn = np.array([[0.0, -1.0, 0, 700.0], [1.0, 0.0, 0, 900.0], [0, 0, 1, 0], [0, 0, 0, 1]])
    record = replace(record, lidar2global=turn)
    lines = [square, square[:4], square[::-1], square, square[[0, 1, 2, 3, 0]]]
    vectors = Vectors(np.array([1, 1, 1, 2, 2]), lines, np.linspace(0.1, 0.9, 5))
    for frame, unit in (("lidar", 1.0), ("global", 1.0), ("wgs84", 1e-5)):
        write_geojson(tmp_path / "x.geojson", {"sample000000": vectors}, {"sample000000": record}, frame, {"a": 1})
        content = json.loads((tmp_path / "x.geojson").read_text())
        assert content["type"] == "FeatureCollection" and content["meta"] == {"a": 1} and "crs" not in content
        kinds = [feature["geometry"]["type"] for feature in content["features"]]
        assert kinds == ["Polygon", "LineString", "Polygon", "LineString", "LineString"], frame
        for feature in content["features"]:
            shape = shapely.geometry.shape(feature["geometry"])
            assert shape.is_valid and shape.length > 3 * unit
            if feature["geometry"]["type"] == "Polygon":
                ring = feature["geometry"]["coordinates"][0]
                assert ring[0] == ring[-1] and len(ring) == 6 and shape.exterior.is_ccw
        last = content["features"][-1]
        assert last["geometry"]["coordinates"][0] == last["geometry"]["coordinates"][-1], "a closed boundary stays so"
        assert last["properties"] == {
            "sample_token": "sample000000", "scene": "scene-0000", "city": "boston-seaport", "class": "boundary",
            "score": 0.9, "timestamp": record.timestamp,
        }
    # x right and y forward of a car at (700, 900) that heads west are north and west.
    lon, lat = last["geometry"]["coordinates"][2]
    expected = derive_latlon("boston-seaport", [{"timestamp": 0, "translation": [700.0 - 4.0, 900.0 + 6.0, 0.0]}])[0]
    assert (lon, lat) == pytest.approx((expected["longitude"], expected["latitude"]), abs=1e-8)


def test_geojson_without_any_line_is_valid(tmp_path):
    write_geojson(tmp_path / "x.geojson", {}, {}, "wgs84", {})
    assert json.loads((tmp_path / "x.geojson").read_text())["features"] == []
