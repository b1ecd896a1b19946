import json

import numpy as np
import pytest
import shapely

from data.polylines import is_closed, line_length
from data.vectorize import MapVectorizer, _closed_by_force
from tests.reference import REFERENCE, needs_reference
from utils.errors import UserError
from utils.frame import CLASSES, PC_RANGES

PC_RANGE = PC_RANGES["60x30"]
CITY = "boston-seaport"


class MapBuilder:
    """A map expansion of hand-made shapes, in the v1.3 format."""

    def __init__(self):
        self.tables = {name: [] for name in ("node", "line", "polygon")}
        for layer in ("road_divider", "lane_divider", "ped_crossing", "road_segment", "lane"):
            self.tables[layer] = []
        self.tables["version"] = "1.3"

    def nodes(self, pts):
        first = len(self.tables["node"])
        tokens = [f"node{first + k}" for k in range(len(pts))]
        self.tables["node"] += [
            {"token": token, "x": float(x), "y": float(y)} for token, (x, y) in zip(tokens, pts, strict=True)
        ]
        return tokens

    def line(self, layer, pts):
        token = f"line{len(self.tables['line'])}"
        self.tables["line"].append({"token": token, "node_tokens": self.nodes(pts)})
        self.tables[layer].append({"token": f"{layer}-{token}", "line_token": token})

    def polygon(self, layer, pts, holes=()):
        token = f"polygon{len(self.tables['polygon'])}"
        record = {"token": token, "exterior_node_tokens": self.nodes(pts)}
        record["holes"] = [{"node_tokens": self.nodes(hole)} for hole in holes]
        self.tables["polygon"].append(record)
        self.tables[layer].append({"token": f"{layer}-{token}", "polygon_token": token})

    def write(self, dataroot):
        folder = dataroot / "maps" / "expansion"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{CITY}.json").write_text(json.dumps(self.tables))


@pytest.fixture
def city():
    return MapBuilder()


def vectorize(city, tmp_path, pose=None, gt_style="maptr"):
    """Polylines by class name around a pose."""
    city.write(tmp_path)
    vectorizer = MapVectorizer(tmp_path, CITY, PC_RANGE, gt_style)
    labels, pts_m = vectorizer.vectorize(np.eye(4) if pose is None else pose)
    assert labels.dtype == np.int64 and np.all(np.diff(labels) >= 0)
    assert all(pts.dtype == np.float32 for pts in pts_m)
    by_class = {name: [] for name in CLASSES}
    for label, pts in zip(labels, pts_m, strict=True):
        by_class[CLASSES[label]].append(pts)
    return by_class


def box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def signed_area(ring):
    x, y = ring.astype(np.float64).T
    return 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def test_a_divider_becomes_one_instance_a_piece(city, tmp_path):
    city.line("lane_divider", [(-20, 10), (0, 10), (0, 20), (-20, 20)])
    city.line("road_divider", [(5, -40), (5, 40)])
    found = vectorize(city, tmp_path)["divider"]
    np.testing.assert_allclose(found[0], [[5, -30], [5, 30]])  # road dividers come first
    assert len(found) == 2
    city.line("lane_divider", [(0, 0), (20, 0), (20, 5), (0, 5)])
    pieces = vectorize(city, tmp_path)["divider"][2:]
    assert sorted(line_length(piece) for piece in pieces) == [15.0, 15.0]


def test_touching_the_patch_in_a_point_is_no_instance(city, tmp_path):
    city.line("road_divider", [(15, 40), (15, 30)])  # ends in the corner
    city.line("road_divider", [(10, 35), (20, 25)])  # passes through the corner
    city.line("lane_divider", [(20, 0), (15, 0)])  # ends on the edge
    city.line("lane_divider", [(20, 3), (14, 3)])
    city.polygon("ped_crossing", box(15, 30, 20, 40))
    found = vectorize(city, tmp_path)
    assert len(found["divider"]) == 1 and found["ped_crossing"] == []


def test_a_divider_that_crosses_itself_is_parted_there_as_maptr_does(city, tmp_path):
    city.line("lane_divider", [(0, 0), (2, 2), (2, 0), (0, 2)])
    assert len(vectorize(city, tmp_path)["divider"]) == 3


def test_placeholders_without_nodes_are_left_out(city, tmp_path):
    city.line("road_divider", [])
    city.line("road_divider", [(1, 1)])
    city.polygon("ped_crossing", [])
    city.polygon("road_segment", box(-5, -5, 5, 5), holes=[[]])
    found = vectorize(city, tmp_path)
    assert [len(found[name]) for name in CLASSES] == [0, 0, 1]


def test_abutting_and_overlapping_crossings_are_one_ring(city, tmp_path):
    city.polygon("ped_crossing", box(-5, 0, 0, 4))
    city.polygon("ped_crossing", box(0, 0, 5, 4))
    city.polygon("ped_crossing", box(4, 1, 7, 3))
    city.polygon("ped_crossing", box(-5, 20, 5, 24), holes=[box(-1, 21, 1, 23)])
    rings = vectorize(city, tmp_path)["ped_crossing"]
    assert len(rings) == 3 and all(is_closed(ring) for ring in rings)
    assert sorted(abs(signed_area(ring)) for ring in rings) == pytest.approx([4, 40, 44])


def test_a_crossing_cut_by_the_patch_stays_a_ring(city, tmp_path):
    city.polygon("ped_crossing", box(10, 0, 20, 4))
    (ring,) = vectorize(city, tmp_path)["ped_crossing"]
    assert is_closed(ring) and ring[:, 0].max() == 15.0


def test_streammapnet_unites_crossings_only_when_nearly_parallel(city, tmp_path):
    city.polygon("ped_crossing", box(-5, 0, 0, 2))
    city.polygon("ped_crossing", box(0, 0, 5, 2))  # in line with the first
    city.polygon("ped_crossing", box(4, 1, 6, 9))  # square to it, though they overlap
    city.polygon("ped_crossing", box(-9, -8, -1, -6))
    rings = vectorize(city, tmp_path, gt_style="streammapnet")["ped_crossing"]
    assert [signed_area(ring) for ring in rings] == pytest.approx([20, 16, 16])
    assert all(is_closed(ring) for ring in rings)
    assert len(vectorize(city, tmp_path)["ped_crossing"]) == 2  # maptr unites all that touch


def test_streammapnet_leaves_islands_out_and_has_the_long_side_ahead_in_x(city, tmp_path):
    city.polygon("ped_crossing", box(20, -5, 40, 5), holes=[box(22, -1, 24, 1)])
    city.line("road_divider", [(-40, 0), (40, 0)])
    found = vectorize(city, tmp_path, gt_style="streammapnet")
    (ring,) = found["ped_crossing"]
    assert signed_area(ring) == pytest.approx(100) and ring[:, 0].max() == 30.0
    assert line_length(found["divider"][0]) == 60.0


def test_streammapnet_closes_by_force_what_its_patch_cuts_into_pieces():
    """One piece stays open: rounding at the patch's edge decides which it is, and the published code does not ask."""
    corners = np.array(box(0, 0, 10, 4), float)
    starts_inside, starts_outside, elsewhere = shapely.linearrings(
        [corners, np.roll(corners, 2, axis=0), corners + 9]
    )
    patch = shapely.box(-5, -5, 5, 2)
    cut = shapely.intersection(np.array([starts_inside, starts_outside, elsewhere]), patch)
    assert [shapely.get_num_geometries(lines) for lines in cut[:2]] == [2, 1]
    assert cut[2].is_empty
    closed, opened = (shapely.get_coordinates(line) for line in _closed_by_force(cut))
    assert is_closed(closed) and line_length(closed) == pytest.approx(7 + np.hypot(5, 2))
    assert not is_closed(opened) and line_length(opened) == 7


def test_boundary_has_no_edge_of_the_patch_and_ends_at_its_margin(city, tmp_path):
    city.polygon("road_segment", box(-5, -50, 5, 0))
    city.polygon("road_segment", box(-5, 0, 5, 50))
    city.polygon("lane", box(-5, 0, -1, 50))
    left, right = sorted(vectorize(city, tmp_path)["boundary"], key=lambda pts: pts[:, 0].min())
    np.testing.assert_allclose(left[:, 0], -5)
    np.testing.assert_allclose(right[:, 0], 5)
    for line in (left, right):
        assert line_length(line) == pytest.approx(59.6, abs=1e-4)
    # clockwise around the road: up on the left, down on the right
    assert left[0, 1] < left[-1, 1] and right[0, 1] > right[-1, 1]


def test_boundary_rings_inside_the_patch_are_whole_and_turn_as_agreed(city, tmp_path):
    city.polygon("road_segment", box(-10, -10, 10, 10), holes=[box(-2, -2, 2, 2)])
    outer, inner = vectorize(city, tmp_path)["boundary"]
    assert is_closed(outer) and is_closed(inner)
    assert signed_area(outer) == pytest.approx(-400) and signed_area(inner) == pytest.approx(16)


def test_a_road_without_width_is_no_boundary(city, tmp_path):
    city.polygon("road_segment", box(-10, -10, 10, 10), holes=[box(-2, -2, 2, -2 + 1e-6)])
    city.polygon("lane", box(5, 20, 5.02, 25))  # narrow, but a road
    outer, narrow = vectorize(city, tmp_path)["boundary"]
    assert signed_area(outer) == pytest.approx(-400) and signed_area(narrow) == pytest.approx(-0.1, rel=1e-3)


def test_a_boundary_ring_is_not_broken_at_its_start(city, tmp_path):
    """The ring starts at (0, 0), inside the patch, and leaves it on the right."""
    city.polygon("road_segment", [(0, 0), (30, -5), (30, 5)])
    (line,) = vectorize(city, tmp_path)["boundary"]
    np.testing.assert_allclose(line[0, 0], 14.8, atol=1e-5)
    np.testing.assert_allclose(line[-1, 0], 14.8, atol=1e-5)


def test_a_boundary_ring_that_also_touches_its_patch_in_a_point_is_joined_all_the_same(city, tmp_path):
    touching = [(20, 5), (14.8, 6), (20, 7), (30, 8), (0, 8)]
    city.polygon("road_segment", [(0, 0), (30, -5), (30, 5), *touching])
    (line,) = vectorize(city, tmp_path)["boundary"]
    np.testing.assert_allclose(np.abs(line[[0, -1], 0]), 14.8, atol=1e-5)


def test_self_crossing_polygons_are_left_out_and_reported(city, tmp_path):
    bow_tie = [(0, 0), (4, 4), (4, 0), (0, 4)]
    city.polygon("ped_crossing", bow_tie)
    city.polygon("lane", bow_tie)
    found = vectorize(city, tmp_path)
    assert found["ped_crossing"] == [] and found["boundary"] == []
    invalid = MapVectorizer(tmp_path, CITY, PC_RANGE).invalid_tokens
    crossings, lanes = ["ped_crossing-polygon0"], ["lane-polygon1"]
    assert invalid == {"ped_crossing": crossings, "road_segment": [], "lane": lanes}


def test_polylines_follow_the_yaw_and_place_of_the_pose(city, tmp_path):
    city.line("road_divider", [(100, 200), (110, 200)])
    pose = np.eye(4)
    pose[:2, :2] = [[0, -1], [1, 0]]  # the frame's x axis points along global y
    pose[:3, 3] = 100, 200, 5
    (line,) = vectorize(city, tmp_path, pose)["divider"]
    np.testing.assert_allclose(line, [[0, 0], [0, -10]], atol=1e-5)


def test_nothing_in_sight(city, tmp_path):
    city.line("road_divider", [(100, 200), (110, 200)])
    city.polygon("road_segment", box(90, 190, 110, 210))
    assert vectorize(city, tmp_path) == {name: [] for name in CLASSES}


def test_the_longer_range_sees_further(city, tmp_path):
    city.line("road_divider", [(20, -80), (20, 80)])
    city.write(tmp_path)
    _, (line,) = MapVectorizer(tmp_path, CITY, PC_RANGES["100x50"]).vectorize(np.eye(4))
    assert line_length(line) == 100.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tables: tables.update(version="1.2"), "map expansion version 1.2, expected 1.3 or later"),
        (lambda tables: tables.pop("version"), "map expansion version 1.0, expected 1.3"),
        (lambda tables: tables.update(version="new"), "not a map expansion"),
        (lambda tables: tables.pop("lane_divider"), "layer lane_divider is missing, expected road_divider"),
        (lambda tables: tables["node"].pop(), "refers to 'node1', which is not there"),
    ],
)
def test_bad_maps_are_named(city, tmp_path, change, message):
    city.line("road_divider", [(0, 0), (1, 1)])
    change(city.tables)
    city.write(tmp_path)
    with pytest.raises(UserError, match=rf"{CITY}\.json: .*{message}.*; .*unpack"):
        MapVectorizer(tmp_path, CITY, PC_RANGE)


def test_missing_and_broken_map_files_are_named(city, tmp_path):
    with pytest.raises(UserError, match=r"atlantis\.json: no such map expansion, cities there: none; unpack"):
        MapVectorizer(tmp_path, "atlantis", PC_RANGE)
    city.write(tmp_path)
    for content in ("[1, 2]", '{"version": '):
        (tmp_path / "maps" / "expansion" / f"{CITY}.json").write_text(content)
        with pytest.raises(UserError, match="not a map expansion"):
            MapVectorizer(tmp_path, CITY, PC_RANGE)


@needs_reference
def test_the_same_pose_gives_the_same_bytes():
    pose = np.eye(4)
    pose[:2, 3] = 411.3, 1180.9
    runs = [
        MapVectorizer(REFERENCE / "gt_parity", "singapore-onenorth", PC_RANGE).vectorize(pose)
        for _ in range(2)
    ]
    assert len(runs[0][1]) > 3
    for first, second in zip(runs[0][1], runs[1][1], strict=True):
        assert first.tobytes() == second.tobytes()
