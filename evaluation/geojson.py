"""Predicted vectors in frames that maps and planners use, and as GeoJSON (RFC 7946).

Origins and formula of longitude and latitude are the nuScenes devkit's (nuscenes/scripts/export_poses.py, the
origins also in nuscenes/map_expansion/map_api.py). Its authors promise no exact alignment of the maps with GPS:
against other maps expect offsets of up to tens of metres (nuscenes-devkit issues 144 and 960); among each other
the lines keep their distances.
"""

import json
import os
from collections.abc import Iterable, Mapping

import numpy as np

from data.geometry import transform_plane
from data.records import SampleRecord
from evaluation.frames import METRIC_FRAMES, lidar_to
from evaluation.vectors import Vectors
from utils.errors import UserError
from utils.files import replacing
from utils.frame import CLASSES

# The last one is longitude and latitude in degrees; global is metres east and north of the city's origin.
FRAMES = (*METRIC_FRAMES, "wgs84")
# South-western corner of each city's map, latitude and longitude in degrees.
MAP_ORIGINS = {
    "boston-seaport": (42.336849169438615, -71.05785369873047),
    "singapore-onenorth": (1.2882100868743724, 103.78475189208984),
    "singapore-hollandvillage": (1.2993652317780957, 103.78217697143555),
    "singapore-queenstown": (1.2782562240223188, 103.76741409301758),
}
EARTH_RADIUS = 6_378_137.0  # metres, the equatorial one, as the devkit takes it
# A predicted crossing is a ring when its ends are nearer than this; no prediction closes to the bit.
RING_GAP = 1.0  # metres
# Digits after the point that still say something: 0.1 mm, and about 1 mm for degrees.
_METRE_DIGITS, _DEGREE_DIGITS = 4, 8


def require_origins(cities: Iterable[str]) -> None:
    """Raise UserError for a city whose place on Earth is unknown."""
    unknown = sorted(set(cities) - MAP_ORIGINS.keys())
    if unknown:
        raise UserError(
            f"--frame wgs84: the origin of {unknown[0]}'s map is unknown, expected one of {', '.join(MAP_ORIGINS)}; "
            "give --frame global for metres in the city's map"
        )


def to_lon_lat(pts_global: np.ndarray, city: str) -> np.ndarray:
    """Points [n, 2] in metres of a city's map to longitude and latitude in degrees, float64 [n, 2].

    The end of the great circle that starts at the map's origin with the point's bearing and distance. Raises
    UserError for a city without a known origin.
    """
    require_origins([city])
    lat_0, lon_0 = np.deg2rad(MAP_ORIGINS[city])
    east, north = np.asarray(pts_global, np.float64).T
    bearing = np.arctan2(east, north)  # clockwise from north
    angle = np.hypot(east, north) / EARTH_RADIUS
    lat = np.arcsin(np.sin(lat_0) * np.cos(angle) + np.cos(lat_0) * np.sin(angle) * np.cos(bearing))
    lon = lon_0 + np.arctan2(
        np.sin(bearing) * np.sin(angle) * np.cos(lat_0), np.cos(angle) - np.sin(lat_0) * np.sin(lat)
    )
    return np.rad2deg(np.stack([lon, lat], axis=1))


def in_frame(pts_m: np.ndarray, record: SampleRecord, frame: str) -> np.ndarray:
    """Points [n, 2] in metres, LiDAR frame, to one of FRAMES, [n, 2]; equal points stay equal."""
    if frame == "wgs84":
        return to_lon_lat(transform_plane(pts_m, lidar_to("global", record)), record.location)
    return transform_plane(pts_m, lidar_to(frame, record))


def write_geojson(
    path: str | os.PathLike,
    predictions: Mapping[str, Vectors],
    records: Mapping[str, SampleRecord],
    frame: str,
    meta: dict,
) -> None:
    """Write scored vectors (metres, LiDAR frame) as a FeatureCollection in `frame`, one feature on each line.

    A crossing whose ends meet becomes a Polygon; everything else is a LineString, a closed boundary too, because
    either side of it may be the road. `meta` is a member of its own, which readers ignore. RFC 7946 knows wgs84
    alone; the other frames are for readers who know what they get.
    """
    collection = {"type": "FeatureCollection", "meta": meta}
    with replacing(path) as file:
        file.write(json.dumps(collection, allow_nan=False)[:-1].encode() + b', "features": [')
        separator = b"\n"
        for token, vectors in predictions.items():
            for index in range(len(vectors)):
                feature = _feature(vectors, index, records[token], frame)
                file.write(separator + json.dumps(feature, allow_nan=False).encode())
                separator = b",\n"
        file.write(b"\n]}\n")


def _feature(vectors: Vectors, index: int, record: SampleRecord, frame: str) -> dict:
    """One line and what is known of it; timestamp in microseconds since 1970."""
    name = CLASSES[vectors.labels[index]]
    pts_m = np.asarray(vectors.pts_m[index], np.float64)
    is_ring = name == "ped_crossing" and len(pts_m) >= 3 and np.hypot(*(pts_m[0] - pts_m[-1])) <= RING_GAP
    if is_ring:
        pts_m = _counter_clockwise_ring(pts_m)
    digits = _DEGREE_DIGITS if frame == "wgs84" else _METRE_DIGITS
    coordinates = np.round(in_frame(pts_m, record, frame), digits).tolist()
    geometry = {"type": "LineString", "coordinates": coordinates}
    if is_ring:
        geometry = {"type": "Polygon", "coordinates": [coordinates]}
    properties = {
        "sample_token": record.sample_token,
        "scene": record.scene_name,
        "city": record.location,
        "class": name,
        "score": float(vectors.scores[index]),
        "timestamp": record.timestamp,
    }
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _counter_clockwise_ring(pts_m: np.ndarray) -> np.ndarray:
    """Points [n, 2] as a ring that ends where it starts, the area on its left, as RFC 7946 wants it."""
    if np.any(pts_m[0] != pts_m[-1]):
        pts_m = np.concatenate([pts_m, pts_m[:1]])
    (x, y), (next_x, next_y) = pts_m[:-1].T, pts_m[1:].T
    return pts_m if np.sum(x * next_y - next_x * y) >= 0 else pts_m[::-1]
