"""data/map_expansion.py: geometries of a small map, and every kind of broken record refused in one line."""

import json

import numpy as np
import pytest
import shapely
from nuscenes.map_expansion.map_api import NuScenesMap

from data.map_expansion import read_layers
from tests.unprivileged import as_nobody
from utils.errors import UserError

CITY = "boston-seaport"
CORNERS = {"a": (0, 0), "b": (8, 0), "c": (8, 8), "d": (0, 8), "e": (2, 2), "f": (4, 2), "g": (4, 4)}


@pytest.fixture
def tables():
    """One line, one square polygon with a triangular hole, and a record of each layer."""
    return {
        "version": "1.3",
        "node": [{"token": token, "x": x, "y": float(y)} for token, (x, y) in CORNERS.items()],
        "line": [{"token": "line0", "node_tokens": ["a", "b", "c"]}],
        "polygon": [{"token": "square", "exterior_node_tokens": list("abcd"), "holes": [{"node_tokens": list("efg")}]}],
        **{layer: [{"token": f"{layer}0", "line_token": "line0"}] for layer in ("road_divider", "lane_divider")},
        **{
            layer: [{"token": f"{layer}0", "polygon_token": "square"}]
            for layer in ("ped_crossing", "road_segment", "lane")
        },
    }


def write(dataroot, tables):
    path = dataroot / "maps" / "expansion" / f"{CITY}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tables))
    return path


def test_lines_polygons_and_holes_have_their_nodes(tables, tmp_path):
    write(tmp_path, tables)
    geometries, invalid = read_layers(tmp_path, CITY)
    (line,) = geometries["lane_divider"]
    np.testing.assert_array_equal(line.coords, [CORNERS[token] for token in "abc"])
    (lane,) = geometries["lane"]
    np.testing.assert_array_equal(lane.exterior.coords, [CORNERS[token] for token in "abcda"])
    np.testing.assert_array_equal(lane.interiors[0].coords, [CORNERS[token] for token in "efge"])
    assert invalid == {"ped_crossing": [], "road_segment": [], "lane": []}


def test_placeholders_and_self_crossing_polygons_are_left_out(tables, tmp_path):
    tables["line"].append({"token": "point", "node_tokens": ["a"]})
    tables["lane_divider"].insert(0, {"token": "lane_divider1", "line_token": "point"})
    tables["polygon"] += [
        {"token": "edge", "exterior_node_tokens": ["a", "b"], "holes": [{"node_tokens": list("efg")}]},
        {"token": "bow", "exterior_node_tokens": list("acbd"), "holes": [{"node_tokens": []}]},
    ]
    tables["lane"] = [{"token": token, "polygon_token": token} for token in ("edge", "bow", "square")]
    write(tmp_path, tables)
    geometries, invalid = read_layers(tmp_path, CITY)
    assert [len(geometries[layer]) for layer in ("lane_divider", "lane")] == [1, 1]
    assert geometries["lane"][0].area == 64 - 2
    assert invalid["lane"] == ["bow"]


def test_what_no_layer_refers_to_may_be_broken(tables, tmp_path):
    """As the devkit has it: only road blocks refer to the polygon without a token of two real cities."""
    write(tmp_path, tables)
    before, _ = read_layers(tmp_path, CITY)
    tables["polygon"].insert(0, {"token": None, "exterior_node_tokens": list("abcd"), "holes": [None]})
    tables["line"].append({"token": "elsewhere", "node_tokens": ["nowhere"]})
    write(tmp_path, tables)
    after, _ = read_layers(tmp_path, CITY)
    for layer in before:
        assert shapely.equals_exact(before[layer], after[layer]).all()
    tables["polygon"][0]["holes"] = []
    tables["lane"].append({"token": "lane1", "polygon_token": None})
    write(tmp_path, tables)
    after, _ = read_layers(tmp_path, CITY)
    assert [lane.area for lane in after["lane"]] == [64 - 2, 64], "what the devkit would take"
    del tables["lane"][1]["polygon_token"]
    write(tmp_path, tables)
    with pytest.raises(UserError, match="lane record lane1: polygon_token is missing, a text is expected"):
        read_layers(tmp_path, CITY)


def test_a_city_like_queenstown_is_read_like_any_other(synthetic_world, tmp_path):
    """Where all road blocks have the polygon whose token is null, which the devkit reads without a word."""
    tables = json.loads((synthetic_world / "maps" / "expansion" / f"{CITY}.json").read_text())
    before, _ = read_layers(synthetic_world, CITY)
    assert len(before["lane"]) and len(before["lane_divider"])
    tables["polygon"].append({**tables["polygon"][0], "token": None})
    tables["road_block"] = [{"token": f"block{number}", "polygon_token": None} for number in range(3)]
    write(tmp_path, tables)
    block = NuScenesMap(str(tmp_path), CITY).road_block[2]
    assert block["exterior_node_tokens"] == tables["polygon"][0]["exterior_node_tokens"]
    after, _ = read_layers(tmp_path, CITY)
    for layer in before:
        assert shapely.equals_exact(before[layer], after[layer]).all()


def test_a_map_without_records_is_empty(tables, tmp_path):
    write(tmp_path, {name: [] for name in tables} | {"version": "1.3"})
    geometries, _ = read_layers(tmp_path, CITY)
    assert {layer: len(found) for layer, found in geometries.items()} == {
        "road_divider": 0, "lane_divider": 0, "ped_crossing": 0, "road_segment": 0, "lane": 0,
    }  # fmt: skip


def change(layer, **fields):
    """Sets fields of the layer's last record."""
    return lambda tables: tables[layer][-1].update(fields)


def without(layer, field):
    return lambda tables: tables[layer][-1].pop(field)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("node", x="1.5"), "node record g: x is '1.5', a finite number is expected"),
        (change("node", y=float("nan")), "node record g: y is nan, a finite number"),
        (change("node", y=float("-inf")), "node record g: y is -inf, a finite number"),
        (change("node", x=None), "node record g: x is None, a finite number"),
        (change("node", x=[1.0]), r"node record g: x is \[1.0\], a finite number"),
        (change("node", x=True), "node record g: x is True, a finite number"),
        (change("node", x=1e300), r"node record g: x is 1e\+300, a finite number"),
        (change("node", x=10**400), "node record g: x is 1000.*, a finite number"),
        (without("node", "x"), "node record g: x is missing, a finite number"),
        (without("node", "token"), "node record number 6: token is missing, a text"),
        (change("line", node_tokens=None), "line record line0: node_tokens is None, a list"),
        (change("line", node_tokens="ab"), "line record line0: node_tokens is 'ab', a list"),
        (change("line", node_tokens=["a", "x"]), "line record line0: node_tokens refers to 'x', which is not there"),
        (change("line", node_tokens=["a", ["b"]]), r"line record line0: node_tokens refers to \['b'\], which is not"),
        (without("line", "node_tokens"), "line record line0: node_tokens is missing, a list"),
        (change("polygon", exterior_node_tokens=5), "polygon record square: exterior_node_tokens is 5, a list"),
        (change("polygon", exterior_node_tokens=[None]), "polygon record square: .* refers to None, which is not"),
        (change("polygon", holes=None), "polygon record square: holes is None, a list"),
        (without("polygon", "holes"), "polygon record square: holes is missing, a list"),
        (change("polygon", holes=[None]), "polygon hole record square: node_tokens is None, a list"),
        (change("polygon", holes=[{"node_tokens": ["x"]}]), "polygon hole record square: node_tokens refers to 'x'"),
        (change("lane", polygon_token=None), "lane record lane0: polygon_token is None, a text"),
        (change("lane", polygon_token="x"), "lane record lane0: polygon_token refers to 'x', which is not there"),
        (without("road_divider", "line_token"), "road_divider record road_divider0: line_token is missing, a text"),
        (lambda tables: tables["lane"].append(None), "lane record number 1 is None, an object with a token"),
        (lambda tables: tables.update(lane={"a": 1}), r"lane holds \{'a': 1\}, a list of records"),
        (lambda tables: tables.update(node=None), "node holds None, a list of records"),
    ],
)
def test_a_broken_record_is_named_in_one_line(tables, tmp_path, damage, message):
    damage(tables)
    path = write(tmp_path, tables)
    with pytest.raises(UserError, match=rf"{CITY}\.json: {message}.*; unpack nuScenes-map-expansion") as caught:
        read_layers(tmp_path, CITY)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_map_in_another_folder_is_found_for_the_remedy(tables, tmp_path):
    path = write(tmp_path, tables)
    deeper = path.parent / "expansion" / path.name
    deeper.parent.mkdir()
    path.rename(deeper)
    with pytest.raises(UserError, match=rf"cities there: none; move {deeper.parent}/\*\.json into {path.parent}$"):
        read_layers(tmp_path, CITY)
    deeper.unlink()
    deeper.symlink_to(tmp_path / "nowhere.json")
    path.symlink_to(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cities there: none; unpack"):
        read_layers(tmp_path, CITY)


def test_an_unreadable_map_is_refused_in_one_line(tables, open_folder):
    path = write(open_folder, tables)
    for denied in (path, path.parent):
        mode = denied.stat().st_mode
        denied.chmod(0)
        with as_nobody(), pytest.raises(UserError, match=rf"{CITY}\.json: cannot be read \(Permission denied\)"):
            read_layers(open_folder, CITY)
        denied.chmod(mode)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_layers(open_folder, CITY)
