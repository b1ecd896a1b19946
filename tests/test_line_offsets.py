"""How far drawn lines lie from the true ones."""

import numpy as np
import pytest

from evaluation.line_offsets import (
    COVERED_M,
    FOUND_M,
    STEP_M,
    coverage_rows,
    covered_length,
    length_f1,
    line_offsets,
    line_rows,
    offset_rows,
)
from evaluation.vectors import Vectors, no_vectors
from utils.frame import CLASSES

DIVIDER, CROSSING, BOUNDARY = range(3)


def along_the_road(x, low=-30.0, high=30.0):
    """A straight line at x metres to the right of the car."""
    return np.array([[x, low], [x, high]])


def vectors(*lines, scores=None):
    """From pairs of a class and points."""
    labels = np.array([label for label, _ in lines], np.int64)
    return Vectors(labels, [pts for _, pts in lines], None if scores is None else np.array(scores))


def test_a_line_beside_the_true_one_is_off_by_as_much_at_every_place():
    (found,) = line_offsets(vectors((DIVIDER, along_the_road(2.3))), vectors((DIVIDER, along_the_road(2.0))))
    np.testing.assert_allclose(found.offset, 0.3, atol=1e-9)
    assert len(found.offset) == 60 / STEP_M + 1
    np.testing.assert_allclose(found.away[[0, 60, 120]], [np.hypot(2.3, 30), 2.3, np.hypot(2.3, 30)])


def test_the_true_line_is_the_nearest_of_the_class_and_may_be_taken_twice():
    truth = vectors((BOUNDARY, along_the_road(0.1)), (DIVIDER, along_the_road(-1.0)), (DIVIDER, along_the_road(0.5)))
    found = line_offsets(vectors((DIVIDER, along_the_road(0.0)), (DIVIDER, along_the_road(0.7))), truth)
    assert [each.offset.max() for each in found] == pytest.approx([0.5, 0.2])


def test_what_is_too_far_away_or_of_another_class_is_not_found():
    truth = vectors((DIVIDER, along_the_road(0.0)), (BOUNDARY, along_the_road(5.0)))
    drawn = [(DIVIDER, along_the_road(FOUND_M + 0.01)), (DIVIDER, along_the_road(FOUND_M - 0.01)),
             (CROSSING, along_the_road(0.0))]  # fmt: skip
    far, near, other = line_offsets(vectors(*drawn), truth)
    assert far is None and other is None and near is not None
    assert line_offsets(vectors(*drawn), no_vectors(scored=False)) == [None] * 3
    assert line_offsets(no_vectors(scored=True), truth) == []


def test_a_line_that_leaves_the_true_one_far_away_shows_it_there_only():
    bent = np.array([[0.0, 0.0], [0.0, 20.0], [2.0, 30.0]])
    rows = offset_rows({"a": vectors((BOUNDARY, bent), scores=[0.5])},
                       {"a": vectors((BOUNDARY, along_the_road(0.0)))}, np.full(3, 0.5))  # fmt: skip
    near, middle, far = rows[BOUNDARY]["bands"]
    assert near["median"] == middle["median"] == near["nine_in_ten"] == middle["nine_in_ten"] == 0.0
    # From 0 to 2 m over the last band, evenly: half of the places below half of that, nine in ten below 1.8 m.
    assert far["median"] == pytest.approx(1.0, abs=0.05) and far["nine_in_ten"] == pytest.approx(1.8, abs=0.05)
    assert near["within"] == {"0.1": 1.0, "0.2": 1.0}
    assert far["within"] == {"0.1": pytest.approx(0.05, abs=0.05), "0.2": pytest.approx(0.1, abs=0.05)}
    assert far["within"]["0.1"] < far["within"]["0.2"]
    assert [band["from"] for band in rows[BOUNDARY]["bands"]] == [0.0, 10.0, 20.0]


def test_rows_count_the_lines_that_reach_their_class_s_score():
    predictions = {
        "a": vectors((DIVIDER, along_the_road(0.2)), (DIVIDER, along_the_road(9.0)), scores=[0.4, 0.3]),
        "b": vectors((DIVIDER, along_the_road(0.0)), (BOUNDARY, along_the_road(0.0)), scores=[0.29, 0.8]),
    }
    truth = {token: vectors((DIVIDER, along_the_road(0.0)), (BOUNDARY, along_the_road(9.0))) for token in predictions}
    rows = offset_rows(predictions, truth, np.array([0.3, 0.5, 0.7]))
    assert [row["name"] for row in rows] == list(CLASSES)
    assert [row["min_score"] for row in rows] == [0.3, 0.5, 0.7]
    assert [row["drawn"] for row in rows] == [2, 0, 1]
    assert [row["found"] for row in rows] == [0.5, None, 0.0]
    assert [row["covered"] for row in rows] == [0.5, None, 0.0], "that of b scores too low"
    assert rows[DIVIDER]["bands"][0]["median"] == pytest.approx(0.2)
    assert {band["median"] for band in rows[BOUNDARY]["bands"]} == {None}
    assert sum(band["places"] for band in rows[DIVIDER]["bands"]) == 60 / STEP_M + 1


def test_a_table_of_one_sample_says_where_each_line_lies_best_first():
    truth = vectors((DIVIDER, along_the_road(0.0)), (BOUNDARY, along_the_road(5.0)))
    bent = np.array([[5.0, -30.0], [5.0, 0.0], [5.0, 5.0], [6.0, 30.0]])  # then leaves it by up to 1 m
    drawn = vectors((CROSSING, along_the_road(0.0)), (BOUNDARY, bent), (DIVIDER, along_the_road(0.15)),
                    scores=[0.5, 0.7, 0.9])  # fmt: skip
    _, *rows = line_rows(drawn, truth)
    assert [row[:4] for row in rows] == [
        ["divider", "0.90", "0.15 m", "0.15 m"],
        ["boundary", "0.70", "0.00 m", "1.00 m"],
        ["ped_crossing", "0.50", "not found", ""],
    ]
    assert [row[4:] for row in rows] == [["0%", "100%"], ["62%", "66%"], ["", ""]]
    assert line_rows(no_vectors(scored=True), truth) == [line_rows(drawn, truth)[0]]


def test_of_a_true_line_counts_what_a_drawn_line_of_its_class_is_near():
    truth = vectors((DIVIDER, along_the_road(0.0)), (BOUNDARY, along_the_road(5.0)), (BOUNDARY, along_the_road(-5.0)))
    stubs = ((DIVIDER, along_the_road(0.3, -30.0, -15.0)), (DIVIDER, along_the_road(0.0, 15.0, 30.0)))
    beside = (BOUNDARY, along_the_road(5.0 + COVERED_M + 0.01))
    metres = covered_length(vectors(*stubs, beside, (DIVIDER, along_the_road(-5.0))), truth)
    # Of a stub's end a place less than COVERED_M further counts as well.
    np.testing.assert_allclose(metres, [[30.0, 60.0], [0.0, 60.0], [0.0, 60.0]], atol=4 * STEP_M)
    assert metres[1, 0] == metres[2, 0] == 0.0
    _, *rows = coverage_rows(vectors(*stubs), truth)
    assert [row[:2] for row in rows] == [["divider", "60.0 m"], ["boundary", "60.0 m"], ["boundary", "60.0 m"]]
    assert rows[1][2] == "0%"
    assert covered_length(no_vectors(scored=True), truth)[:, 0].tolist() == [0.0] * 3
    assert covered_length(no_vectors(scored=True), no_vectors(scored=False)).shape == (0, 2)


def test_length_f1_weighs_what_is_drawn_wrongly_and_what_is_missed():
    truth = vectors((DIVIDER, along_the_road(0.0)), (BOUNDARY, along_the_road(5.0)))
    assert length_f1(truth, truth) == 1.0
    beside = vectors((DIVIDER, along_the_road(0.15)), (BOUNDARY, along_the_road(5.3)))
    assert length_f1(beside, truth) == pytest.approx(0.5) and length_f1(beside, truth, within_m=0.3001) == 1.0
    one = vectors((DIVIDER, along_the_road(0.0)))
    assert length_f1(one, truth) == pytest.approx(2 / 3) == length_f1(truth, one)
    far = vectors((DIVIDER, along_the_road(3.0)))
    nothing = no_vectors(scored=True)
    assert length_f1(far, truth) == length_f1(nothing, truth) == length_f1(truth, nothing) == 0.0
    assert length_f1(nothing, no_vectors(scored=False)) is None
