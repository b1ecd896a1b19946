"""Which samples the gallery shows, and what is on their pictures."""

import io

import numpy as np
from PIL import Image

from evaluation.chamfer_ap import hits_by_class, match_samples
from evaluation.min_scores import FALLBACK_SCORE, min_scores_of
from evaluation.pictures.canvas import CLASS_COLOURS, PAPER
from evaluation.report.gallery import choose_samples, judge_samples, picture_sample
from evaluation.sample_f1 import SampleF1
from evaluation.vectors import Vectors
from tests.made_records import make_record
from utils.frame import PC_RANGES

LINE = np.array([[0.0, -10.0], [0.0, 10.0]])
THRESHOLDS = (0.5, 1.0, 1.5)


def scored(values: list[float | None]) -> list[SampleF1]:
    """Samples of ten lines with these F1 values; None: nothing there."""
    return [SampleF1(0, 0, 0) if v is None else SampleF1(round(10 * v), 0, 20 - 2 * round(10 * v)) for v in values]


def test_best_median_and_worst_come_in_their_order():
    values = [0.5, 0.9, None, 0.1, 0.3, 0.7, 0.0, 1.0, 0.8, 0.2]
    assert choose_samples(scored(values), range(10), 2) == {"Best": [7, 1], "Median": [5, 0], "Worst": [6, 3]}
    assert choose_samples(scored(values), range(10), 0) == {"Best": [], "Median": [], "Worst": []}


def test_few_samples_are_shared_out_and_shown_once():
    assert choose_samples(scored([0.5, 0.1, 0.9, 0.3]), range(4), 4) == {"Best": [2], "Median": [0], "Worst": [1]}
    assert choose_samples(scored([0.5]), [0], 4) == {"Best": [0], "Median": [], "Worst": []}
    assert choose_samples(scored([None]), [0], 4) == {"Best": [], "Median": [], "Worst": []}
    for count in range(1, 12):
        chosen = choose_samples(scored([0.5] * count), [0] * count, 4)
        together = [index for group in chosen.values() for index in group]
        assert len(together) == len(set(together))


def test_a_group_shows_different_scenes_while_there_are_any():
    values = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    scenes = [0, 0, 0, 1, 1, 1, 2, 2, 3]
    chosen = choose_samples(scored(values), scenes, 3)
    assert chosen["Best"] == [0, 3, 6]
    assert chosen["Worst"] == [8, 7, 5]
    assert chosen["Median"] == [1, 2, 4], "what is left, from two scenes only"


def test_shown_predictions_reach_the_score_that_suits_their_class():
    truth = {"a": Vectors(np.array([0]), [LINE]), "b": Vectors(np.array([0, 2]), [LINE, LINE + 5])}
    predictions = {
        "a": Vectors(np.array([0, 0]), [LINE + 0.2, LINE + 8], np.array([0.8, 0.1], np.float32)),
        "b": Vectors(np.array([0, 1, 2]), [LINE + 0.3, LINE, LINE - 9], np.array([0.2, 0.29, 0.31], np.float32)),
    }
    hits = hits_by_class(match_samples(predictions, truth, "maptr", THRESHOLDS), len(THRESHOLDS))
    min_scores = min_scores_of(hits, THRESHOLDS)
    np.testing.assert_allclose(min_scores, [0.2, FALLBACK_SCORE, FALLBACK_SCORE])
    shown, scores = judge_samples(predictions, truth, min_scores)
    assert shown["a"].labels.tolist() == [0] and shown["b"].labels.tolist() == [0, 2], "0.2 itself reaches 0.2"
    assert scores == [SampleF1(1, 0, 0), SampleF1(1, 1, 1)]


def colours_in(content: bytes) -> tuple[set[int], bool]:
    """Classes whose colour, nearly, covers a good part of a picture, and whether white does."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.int64).reshape(-1, 3)
    counts = [(np.abs(pixels - colour).max(axis=1) < 40).sum() for colour in (*CLASS_COLOURS, PAPER)]
    return {label for label, count in enumerate(counts[:-1]) if count > 50}, bool(counts[-1] > 50)


def test_maps_show_one_kind_each_and_cameras_solid_predictions_over_dashed_truth(tmp_path):
    record = make_record(0, np.array([0]), [np.array([[-2.0, 4.0], [-2.0, 29.0]], np.float32)], width=800)
    for path, size in zip(record.image_paths, record.image_sizes.tolist(), strict=True):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", tuple(size), (60, 60, 60)).save(tmp_path / path)
    predictions = Vectors(np.array([2]), [np.array([[2.0, 4.0], [2.0, 29.0]])], np.array([0.9]))
    sample = picture_sample(record, predictions, SampleF1(0, 1, 1), tmp_path, PC_RANGES["60x30"])
    truth_map, predicted_map = sample.maps
    assert colours_in(truth_map.content)[0] == {0} and "1 divider, 0 ped_crossing, 0 boundary" in truth_map.alt
    assert colours_in(predicted_map.content)[0] == {2} and "0 divider, 0 ped_crossing, 1 boundary" in predicted_map.alt
    assert [picture.size for picture in sample.cameras] == [(640, 360), (400, 225), (400, 225)]
    assert colours_in(sample.cameras[0].content) == ({2}, True)
    assert sample.cameras[0].alt.startswith("Front camera")
