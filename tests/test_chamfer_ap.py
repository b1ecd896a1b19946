"""Chamfer AP: parity with the published evaluators, invariances, the candidate test, the file formats."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.polylines import resample_lines
from evaluation.chamfer import chamfer_distances
from evaluation.chamfer_ap import (
    ClassHits,
    average_precision,
    best_f1,
    evaluate,
    format_table,
    match_sample,
    summarize,
)
from evaluation.formats import read_ground_truth, read_predictions
from evaluation.line_buffers import bands_touch
from evaluation.vectors import Vectors, no_vectors
from tests.reference import REFERENCE, needs_reference
from utils.errors import UserError
from utils.frame import CLASSES

PARITY = REFERENCE / "eval_parity"
PROTOCOLS = ("maptr", "streammapnet")


def random_line(rng, ring=False):
    """A wavy line across the range, or an irregular ring of five corners."""
    if ring:
        angles = np.sort(rng.uniform(0, 2 * np.pi, 5))
        corners = rng.uniform(2, 5) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return np.concatenate([corners, corners[:1]]) + rng.uniform([-10, -25], [10, 25])
    start, heading = rng.uniform([-10, -25], [10, 5]), rng.uniform(0, np.pi)
    steps = rng.uniform(1, 3, (8, 1)) * np.stack(
        [np.cos(heading + rng.normal(0, 0.2, 8)), np.sin(heading + rng.normal(0, 0.2, 8))], axis=1
    )
    return np.concatenate([[start], start + np.cumsum(steps, axis=0)])


def random_truth(rng, samples=4):
    """Ground truth of some samples with two lines of each class, crossings as rings."""
    return {
        f"sample{index}": Vectors(
            np.repeat(np.arange(3), 2), [random_line(rng, ring=label == 1) for label in (0, 0, 1, 1, 2, 2)]
        )
        for index in range(samples)
    }


def scored(vectors, rng, noise=0.0):
    """Ground truth as predictions, with noise on each point in metres and distinct random scores."""
    pts = [line + rng.normal(0, 1, line.shape) * noise for line in vectors.pts_m]
    return Vectors(vectors.labels, pts, rng.uniform(0.01, 1, len(pts)))


def random_predictions(truth, rng, noise=0.6):
    return {token: scored(vectors, rng, noise) for token, vectors in truth.items()}


@needs_reference
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equals_the_published_evaluators(protocol):
    predictions = read_predictions(PARITY / "predictions.json")[0]
    ground_truth = read_ground_truth(PARITY / "ground_truth.json")
    expected = json.loads((PARITY / "expected.json").read_text())[protocol]
    result = evaluate(predictions, ground_truth, protocol)
    assert result["mAP"] == pytest.approx(expected["mAP"], abs=1e-6)
    for name in CLASSES:
        assert result[name] == pytest.approx(expected[name], abs=1e-6)


@needs_reference
def test_worker_processes_and_order_of_samples_change_nothing():
    predictions = read_predictions(PARITY / "predictions.json")[0]
    ground_truth = read_ground_truth(PARITY / "ground_truth.json")
    alone = evaluate(predictions, ground_truth)
    backwards = dict(reversed(list(ground_truth.items())))
    assert evaluate(predictions, backwards, num_workers=2) == alone


def test_training_validation_needs_no_shapely():
    code = "import evaluation.chamfer_ap, evaluation.postprocess, sys; print('shapely' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_perfect_prediction_scores_one_in_every_class(protocol):
    rng = np.random.default_rng(0)
    truth = random_truth(rng)
    result = evaluate(random_predictions(truth, rng, noise=0.0), truth, protocol)
    assert result["mAP"] == 1.0
    for name in CLASSES:
        assert result[name] == {"AP@0.5": 1.0, "AP@1.0": 1.0, "AP@1.5": 1.0, "AP": 1.0}
        assert result["details"][name]["matched_chamfer"] == pytest.approx(0.0, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_direction_of_a_line_and_start_of_a_ring_change_nothing(seed):
    rng = np.random.default_rng(seed)
    ring, line, other = random_line(rng, ring=True), random_line(rng), random_line(rng)
    other = other + (line[0] - other[0])
    start = int(rng.integers(1, len(ring) - 1))
    rolled = np.concatenate([ring[start:-1], ring[: start + 1]])
    lines = resample_lines([line, other, line[::-1], ring, rolled, ring[::-1]], 100)
    index_a, index_b = np.array([0, 2, 3, 3]), np.array([1, 1, 4, 5])
    forth, back, moved, mirrored = chamfer_distances(lines, lines, index_a, index_b, np.inf)
    assert back == pytest.approx(forth, abs=1e-9)
    # The points of a resampled ring lie elsewhere, at most half a step (perimeter / 99) from the old ones.
    half_step = np.linalg.norm(np.diff(ring, axis=0), axis=1).sum() / 99 / 2
    assert moved <= half_step + 1e-9 and mirrored == pytest.approx(0.0, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_order_of_samples_changes_nothing_even_with_equal_scores(seed):
    rng = np.random.default_rng(seed)
    truth = random_truth(rng)
    predictions = {
        token: Vectors(vectors.labels, vectors.pts_m, np.round(vectors.scores, 1))
        for token, vectors in random_predictions(truth, rng).items()
    }
    tokens = list(truth)
    rng.shuffle(tokens)
    shuffled = evaluate({t: predictions[t] for t in tokens[::-1]}, {t: truth[t] for t in tokens})
    assert shuffled == evaluate(predictions, truth)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_a_duplicate_never_helps(seed):
    rng = np.random.default_rng(seed)
    truth = random_truth(rng)
    predictions = random_predictions(truth, rng)
    token = sorted(predictions)[0]
    one = predictions[token]
    doubled = Vectors(
        np.append(one.labels, one.labels[0]), [*one.pts_m, one.pts_m[0]], np.append(one.scores, one.scores[0])
    )
    before = evaluate(predictions, truth)
    after = evaluate(predictions | {token: doubled}, truth)
    for name in CLASSES:
        assert after[name]["AP"] <= before[name]["AP"] + 1e-12


def test_a_duplicate_above_a_hit_lowers_the_ap():
    rng = np.random.default_rng(1)
    lines = [np.array([[0.0, 0.0], [0.0, 9.0]]), np.array([[8.0, 0.0], [8.0, 9.0]])]
    truth = {"a": Vectors(np.zeros(2, int), lines)}
    predictions = {"a": Vectors(np.zeros(3, int), [lines[0], lines[0], lines[1]], np.array([0.9, 0.8, 0.7]))}
    assert evaluate(predictions, truth)["divider"]["AP"] == pytest.approx((1 + 2 / 3) / 2)
    assert evaluate({"a": scored(truth["a"], rng)}, truth)["divider"]["AP"] == 1.0


def test_a_prediction_whose_nearest_line_is_taken_is_false_though_another_is_near():
    upright = np.array([[0.0, 0.0], [0.0, 9.0]])
    truth = Vectors(np.zeros(2, int), [upright, upright + [1.2, 0.0]])
    near_the_first = [upright + [0.1, 0.0], upright + [0.4, 0.0]]
    predictions = Vectors(np.zeros(2, int), near_the_first, np.array([0.9, 0.8]))
    matches = match_sample(predictions, truth)
    assert matches.true_positive[:, 1].tolist() == [True, False]


def test_the_class_must_agree():
    truth = {"a": Vectors(np.array([0]), [np.array([[0.0, 0.0], [0.0, 9.0]])])}
    predictions = {"a": Vectors(np.array([2]), truth["a"].pts_m, np.array([0.9]))}
    assert evaluate(predictions, truth)["mAP"] == 0.0


def test_area_under_the_envelope():
    assert average_precision(np.array([True, False, True, True]), 4) == pytest.approx((1 + 0.75 + 0.75) / 4)
    assert average_precision(np.array([False, False]), 3) == 0.0
    assert average_precision(np.zeros(0, bool), 3) == 0.0


def test_samples_without_predictions_and_classes_without_truth():
    line = np.array([[0.0, 0.0], [0.0, 9.0]])
    truth = {"a": Vectors(np.array([0]), [line]), "b": Vectors(np.array([0]), [line]), "c": no_vectors(False)}
    predictions = {"b": Vectors(np.array([0, 1]), [line, line], np.array([0.5, 0.9]))}
    maptr = evaluate(predictions, truth, "maptr")
    assert maptr["divider"]["AP"] == pytest.approx(0.5) and maptr["mAP"] == pytest.approx(0.5)
    assert maptr["ped_crossing"] == {"AP@0.5": None, "AP@1.0": None, "AP@1.5": None, "AP": None}
    streammapnet = evaluate(predictions, truth, "streammapnet")
    assert streammapnet["boundary"]["AP"] == 0.0 and streammapnet["mAP"] == pytest.approx(0.5 / 3)
    for nothing in ({}, {"a": no_vectors(True)}):
        assert evaluate(nothing, truth)["divider"]["AP"] == 0.0
    assert np.isnan(evaluate({}, {})["mAP"]) and format_table(evaluate({}, {})).splitlines()[-1].split() == ["mAP", "-"]
    assert summarize({})["divider"]["AP"] is None


def test_a_token_that_is_not_in_the_ground_truth():
    with pytest.raises(UserError, match="stranger"):
        evaluate({"stranger": no_vectors(True)}, {"a": no_vectors(False)})


def test_pruned_chamfer_distances_equal_the_plain_definition():
    rng = np.random.default_rng(4)
    lines = resample_lines([random_line(rng) for _ in range(30)], 50)
    index_a, index_b = (index.ravel() for index in np.meshgrid(np.arange(30), np.arange(30)))
    plain = np.linalg.norm(lines[index_a][:, :, None] - lines[index_b][:, None], axis=-1)
    plain = (plain.min(axis=2).mean(axis=1) + plain.min(axis=1).mean(axis=1)) / 2
    found = chamfer_distances(lines, lines, index_a, index_b, limit=4.0)
    np.testing.assert_allclose(found[plain <= 4.0], plain[plain <= 4.0], atol=1e-12)
    assert np.isinf(found).sum() > 300 and (plain <= 4.0).sum() > 60


def _stub(rng):
    """A short line, from straight to wild, or a small ring."""
    size, count, kind = 10 ** rng.uniform(-0.3, 0.8), rng.integers(2, 20), rng.integers(3)
    if kind == 0:
        return np.linspace(0, 1, count)[:, None] * rng.normal(size=2) * size + rng.normal(0, 0.1, (count, 2))
    if kind == 1:
        return np.cumsum(rng.normal(size=(count, 2)), axis=0) * size / count
    angles = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(0.5, 2 * np.pi), count)
    return size / 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_candidate_test_agrees_with_geos_on_hostile_lines():
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(0)
    lines_a = resample_lines([_stub(rng) for _ in range(400)], 100)
    lines_b = resample_lines([_stub(rng) + rng.normal(0, 3.0, 2) for _ in range(400)], 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        bands = [
            shapely.buffer(shapely.linestrings(lines), 2.0, cap_style="flat", join_style="mitre")
            for lines in (lines_a, lines_b)
        ]
    expected = shapely.intersects(*bands)
    found = bands_touch(lines_a, lines_b, 2.0)
    assert 50 < np.sum(~expected) < 350
    assert np.mean(found == expected) > 0.99


@pytest.mark.parametrize(
    ("gap", "touches"), [(-0.01, True), (0.01, False)], ids=["ends overlap", "ends apart"]
)
def test_bands_have_flat_caps(gap, touches):
    first = np.array([[[0.0, 0.0], [1.0, 0.0]]])
    assert bands_touch(first, first + [1.0 + gap, 0.0], 2.0).tolist() == [touches]
    assert bands_touch(first, first + [0.3, 4.0 + gap], 2.0).tolist() == [touches]


def test_a_line_of_zero_length_has_no_band():
    point, line = np.zeros((1, 3, 2)), np.array([[[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]])
    assert not bands_touch(point, line, 2.0)[0] and not bands_touch(line, point, 2.0)[0]


def test_table_is_aligned_and_marks_what_is_missing():
    line = np.array([[0.0, 0.0], [0.0, 9.0]])
    truth = {"a": Vectors(np.array([0]), [line])}
    result = evaluate({"a": Vectors(np.array([0]), [line + [0.75, 0.0]], np.array([0.5]))}, truth)
    rows = format_table(result).splitlines()
    end = rows[0].index("AP@1.0") + len("AP@1.0")
    assert rows[1].startswith("divider") and rows[1][:end].endswith(" 1.000")
    assert rows[1].split()[1:5] == ["0.000", "1.000", "1.000", "0.667"]
    assert rows[2].split()[1:5] == ["-"] * 4
    assert rows[-1].split() == ["mAP", "0.667"]


def test_details_say_what_is_found_at_the_largest_threshold():
    line = np.array([[0.0, 0.0], [0.0, 9.0]])
    truth = {"a": Vectors(np.array([0]), [line])}
    beside = Vectors(np.array([0]), [line + [0.75, 0.0]], np.array([0.5]))
    divider = evaluate({"a": beside}, truth)["details"]["divider"]
    assert divider["recall"] == 1.0 and divider["matched_chamfer"] == pytest.approx(0.75)
    assert divider["best_f1"]["f1"] == 1.0 and divider["best_f1"]["threshold"] == 1.0


def test_the_best_threshold_keeps_or_drops_equal_scores_together():
    scores, hits = np.array([0.5, 0.5, 0.25]), np.array([[True], [False], [True]])
    found = best_f1(ClassHits(scores, hits, np.zeros(3), num_gt=3), [0.5])
    assert found == {"threshold": 0.5, "f1": pytest.approx(2 / 3), "precision": pytest.approx(2 / 3),
                     "recall": pytest.approx(2 / 3), "score": 0.25}  # fmt: skip
    found = best_f1(ClassHits(scores[:2], hits[:2], np.zeros(2), num_gt=1), [0.5])
    assert found["precision"] == 0.5, "no threshold has the first without the second"


def test_the_best_score_is_judged_at_the_smallest_distance_at_which_enough_lines_are_found():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    near, far = np.array([0, 0, 1, 0], bool), np.array([1, 0, 1, 1], bool)

    def judged(near, far, num_gt):
        found = best_f1(ClassHits(scores, np.stack([far, near], axis=1), np.zeros(4), num_gt), [1.5, 0.5])
        return found and (found["threshold"], found["score"])

    assert judged(near, far, 4) == (0.5, 0.7), "one of four is a quarter"
    assert judged(near, far, 5) == (1.5, 0.6), "one of five is not"
    assert judged(near, far, 50) == (1.5, 0.6), "hardly a line is found anywhere"
    assert judged(near & False, far & False, 4) is None
