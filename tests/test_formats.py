"""Files of the two families: what is written comes back, and whatever is amiss is named in one line."""

import builtins
import json
import tracemalloc

import numpy as np
import pytest

from evaluation.formats import (
    STREAMMAPNET_CLASSES,
    read_ground_truth,
    read_predictions,
    write_maptr_ground_truth,
    write_maptr_predictions,
    write_streammapnet_predictions,
)
from evaluation.vectors import Vectors, no_vectors
from utils.errors import UserError

LINE = [[0.0, 0.0], [1.0, 1.0]]
GOOD = {"pts": LINE, "type": 0, "cls_name": "divider", "confidence_level": 0.5}
HUGE = 10**400  # JSON knows no largest number; beyond 1e308 it fits no float


def made_up(samples=4, lines=6, seed=5):
    """Ground truth of lines with 2 to 20 points, and the same as predictions."""
    rng = np.random.default_rng(seed)
    truth = {}
    for index in range(samples):
        pts_m = [rng.uniform(-15, 15, (rng.integers(2, 21), 2)) for _ in range(lines)]
        truth[f"sample{index}"] = Vectors(np.arange(lines) % 3, pts_m)
    predictions = {
        token: Vectors(vectors.labels, vectors.pts_m, rng.uniform(0, 1, lines)) for token, vectors in truth.items()
    }
    return truth, predictions


def test_files_round_trip(tmp_path):
    truth, predictions = made_up()
    truth["nothing"], predictions["nothing"] = no_vectors(False), no_vectors(True)
    write_maptr_ground_truth(tmp_path / "gt.json", truth)
    write_maptr_predictions(tmp_path / "maptr.json", predictions, {"use_camera": True})
    write_streammapnet_predictions(tmp_path / "stream.json", predictions, {"output_format": "vector"})
    stored_labels = json.loads((tmp_path / "stream.json").read_text())["results"]["sample0"]["labels"]
    assert stored_labels == [1, 0, 2, 1, 0, 2]  # StreamMapNet's order of classes
    for read, written in (
        (read_ground_truth(tmp_path / "gt.json"), truth),
        (read_predictions(tmp_path / "maptr.json").by_token, predictions),
        (read_predictions(tmp_path / "stream.json").by_token, predictions),
    ):
        assert list(read) == list(written)
        for token, vectors in written.items():
            assert read[token].labels.tolist() == vectors.labels.tolist()
            for found, line in zip(read[token].pts_m, vectors.pts_m, strict=True):
                assert found.dtype == np.float64
                np.testing.assert_allclose(found, line, atol=6e-5)
            if vectors.scores is not None:
                np.testing.assert_array_equal(read[token].scores, vectors.scores)


@pytest.mark.parametrize("write", [write_maptr_predictions, write_streammapnet_predictions])
def test_reading_takes_a_few_times_the_file(write, tmp_path):
    write(tmp_path / "p.json", made_up(samples=300, lines=50)[1], {})
    tracemalloc.start()
    read_predictions(tmp_path / "p.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * (tmp_path / "p.json").stat().st_size  # as nested lists it takes more than 10 times as much


def refused(path, message, content, read=read_predictions):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and ";" in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pts": [[0.0, 0.0]]}, "at least 2"),
        ({"pts": []}, "at least 2"),
        ({"pts": [[0.0, 0.0], [float("nan"), 1.0]]}, "not finite"),
        ({"pts": [[0.0, 0.0], [1e300, 1.0]]}, "coordinate of 1e\\+300, expected metres"),
        ({"pts": [[0.0, 0.0], [HUGE, 1.0]]}, "coordinate of 1000.*000, expected metres"),
        ({"pts": [[0.0, 0.0], [1.0]]}, "expected \\[n, 2\\]"),
        ({"pts": [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]}, "shape \\[2, 3\\], expected \\[n, 2\\]; drop the third column"),
        ({"pts": [["0.0", "0.0"], ["1.5", "1.0"]]}, "coordinate '0.0', expected a number"),
        ({"pts": [[0.0, 0.0], [True, 1.0]]}, "coordinate True, expected a number"),
        ({"pts": [[0.0, 0.0], [None, 1.0]]}, "coordinate None, expected a number"),
        ({"pts": [[0.0, 0.0], [[1.0, 2.0], 1.0]]}, "coordinate \\[1.0, 2.0\\], expected a number"),
        ({"pts": None}, "points None, expected a list"),
        ({"pts": {"x": 1.0}}, "points .*'x'.*, expected a list"),
        ({"pts": "abc"}, "points 'abc', expected a list"),
        ({"type": 3, "cls_name": None}, "label 3"),
        ({"type": -1, "cls_name": None}, "label -1"),
        ({"type": True}, "label True"),
        ({"type": 1}, "ped_crossing"),
        ({"confidence_level": 1.5}, "score 1.5"),
        ({"confidence_level": float("nan")}, "score nan"),
        ({"confidence_level": HUGE}, "score 1000.*000, expected 0 to 1"),
        ({"confidence_level": "0.5"}, "score '0.5'"),
    ],
)
def test_bad_values_in_a_file_are_named(tmp_path, change, message):
    vector = GOOD | change
    said = refused(tmp_path / "p.json", message, {"results": [{"sample_token": "tok", "vectors": [GOOD, vector]}]})
    assert "tok" in said and "vector 1" in said
    if "cls_name" in change or change == {"type": 1}:
        return  # StreamMapNet has no names of classes
    label = vector["type"]
    label = label if isinstance(label, bool) else STREAMMAPNET_CLASSES.index("divider")
    sample = {"vectors": [LINE, vector["pts"]], "scores": [0.5, vector["confidence_level"]], "labels": [0, label]}
    said = refused(tmp_path / "s.json", message, {"results": {"tok": sample}})
    assert "tok" in said and "vector 1" in said


SAMPLE = {"vectors": [LINE], "scores": [0.5], "labels": [0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"results": [', "not JSON"),
        ("", "empty, expected a JSON file"),
        (" \n", "empty, expected a JSON file"),
        ("\ufeff{}", "byte order mark"),
        ('{"results": ' + 5000 * "[" + 5000 * "]" + "}", "nested too deeply"),
        ('{"results": {"a": {"vectors": [], "scores": [], "labels": %s}}}' % (900 * "[" + 900 * "]"), "1 labels"),
        ('{"results": [{"sample_token": "a", "vectors": [], "x": %s}]}' % ("1" * 5000), "not JSON"),
        ({"GTs": []}, "ground-truth file"),
        ([], 'no "results"'),
        ({"results": ["text"]}, "entry 0: lacks sample_token"),
        ({"results": [{"vectors": []}]}, "entry 0: lacks sample_token"),
        ({"results": [{"sample_token": "a", "vectors": []}] * 2}, "'a' twice"),
        ({"results": [{"sample_token": ["a"], "vectors": []}]}, "sample_token \\['a'\\], expected a string"),
        ({"results": [{"sample_token": {"a": 1}, "vectors": []}]}, "sample_token .*, expected a string"),
        ({"results": [{"sample_token": "a", "vectors": {}}]}, "vectors {}, expected a list"),
        ({"results": [{"sample_token": "a", "vectors": ""}]}, "vectors '', expected a list"),
        ({"results": [{"sample_token": "a", "vectors": [None]}]}, "'a': vector 0: lacks pts"),
        ({"results": {"a": SAMPLE | {"vectors": [], "labels": []}}}, "1 scores"),
        ({"results": {"a": {"vectors": []}}}, "lacks scores"),
        ({"results": {"a": None}}, "lacks vectors"),
        ({"results": {"a": SAMPLE | {"scores": None}}}, "scores None, expected a list"),
        ({"results": {"a": SAMPLE | {"scores": 0.5}}}, "scores 0.5, expected a list"),
        ({"results": {"a": SAMPLE | {"vectors": {}, "scores": [], "labels": []}}}, "vectors {}, expected a list"),
        ({"results": {"a": SAMPLE | {"vectors": "", "scores": [], "labels": []}}}, "vectors '', expected a list"),
        ({"results": {"a": SAMPLE | {"labels": "a"}}}, "labels 'a', expected a list"),
        ('{"results": {"a": %s, "b": %s, "a": %s}}' % ((json.dumps(SAMPLE),) * 3), "'a' twice in one object"),
        ({"meta": {"frame": ["lidar"]}, "results": {}}, "frame \\['lidar'\\], expected lidar, ego, global"),
        ({"meta": {"pc_range": "60x30"}, "results": {}}, "pc_range '60x30', expected x_min"),
        ({"meta": {"pc_range": [-15, -30, 15, 30]}, "results": {}}, "pc_range .*, expected x_min"),
        ({"meta": {"pc_range": [-15, -30, -2, 15, HUGE, 2]}, "results": {}}, "pc_range .*, expected x_min"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, message):
    refused(tmp_path / "file.json", message, content)


def test_ground_truth_is_checked_as_predictions_are(tmp_path):
    path = tmp_path / "gt.json"
    refused(path, 'no "GTs" list', {"GTs": {}}, read_ground_truth)
    refused(path, "'a': vector 0: lacks type", {"GTs": [{"sample_token": "a", "vectors": [{"pts": LINE}]}]},
            read_ground_truth)
    sample = {"sample_token": "a", "vectors": [GOOD | {"pts": [[0, 0, 0], [1, 1, 1]]}]}
    refused(path, "drop the third column", {"GTs": [sample]}, read_ground_truth)


def test_files_that_cannot_be_read_are_one_line(tmp_path, monkeypatch):
    path = tmp_path / "p.json"
    with pytest.raises(UserError, match="p.json: No such file"):
        read_predictions(path)
    with pytest.raises(UserError, match="Is a directory"):
        read_ground_truth(tmp_path)
    path.write_bytes(b'{"results": [{"sample_token": "\xe9", "vectors": []}]}')
    with pytest.raises(UserError, match="p.json: byte 31 is not UTF-8"):
        read_predictions(path)
    path.write_bytes('{"results": []}'.encode("utf-16"))
    with pytest.raises(UserError, match="p.json: byte 0 is not UTF-8"):
        read_predictions(path)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", forbidden)  # root may read everything
    with pytest.raises(UserError, match="p.json: Permission denied"):
        read_predictions(path)


def test_the_range_that_a_file_names(tmp_path):
    for content, expected in (({}, None), ({"pc_range": [-15, -30, -2, 15, 30, 2]}, (-15, -30, -2, 15, 30, 2))):
        write_maptr_predictions(tmp_path / "p.json", {}, content)
        assert read_predictions(tmp_path / "p.json").pc_range == expected
