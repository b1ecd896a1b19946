"""How far drawn lines lie from the true ones, point by point, and how much of the true ones is drawn.

Chamfer distance and AP judge a line as a whole; an offset says where along it and how far from the car it leaves the
true one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely

from evaluation.vectors import Vectors
from utils.frame import CLASSES

STEP_M = 0.5  # metres along a line between places that are judged, at most
# Metres from the middle of the true line: lane markings are 0.1 to 0.2 m wide, so the first is the edge of the paint
# of the widest, the second lies beside it by no more than its width.
WITHIN_M = (0.1, 0.2)
FOUND_M = 1.5  # metres that a drawn line may lie from a true one in the mean to be taken for it
COVERED_M = 0.5  # metres from a place of a true line to a drawn one that shows it
BAND_EDGES_M = (0.0, 10.0, 20.0, 60.0)  # distance from the car; no range reaches beyond the last


@dataclass(frozen=True)
class Offsets:
    """Of n places along a drawn line, STEP_M apart or less."""

    away: np.ndarray  # [n] metres from the car
    offset: np.ndarray  # [n] metres from the true line


def line_offsets(predictions: Vectors, ground_truth: Vectors) -> list[Offsets | None]:
    """For each predicted line how far its places lie from the true one; in a frame whose origin is the car.

    The true line is the one of its class that its places are nearest to in the mean; None where that is beyond FOUND_M.
    Several may take the same.
    """
    found: list[Offsets | None] = []
    true_lines = _lines(ground_truth)
    for label, line in zip(predictions.labels, _lines(predictions), strict=True):
        places = _places(line)
        distances = shapely.distance(places[:, None], true_lines[ground_truth.labels == label])  # [n, G]
        mean = distances.mean(axis=0)
        if mean.min(initial=np.inf) > FOUND_M:
            found.append(None)
        else:
            away = np.hypot(shapely.get_x(places), shapely.get_y(places))
            found.append(Offsets(away, distances[:, mean.argmin()]))
    return found


def covered_length(drawn: Vectors, ground_truth: Vectors, within_m: float = COVERED_M) -> np.ndarray:
    """Metres of the true lines [G, 2] of one sample: within within_m of a drawn line of their class, and in all."""
    drawn_lines, true_lines = _lines(drawn), _lines(ground_truth)
    metres = np.zeros((len(true_lines), 2))
    for index, (label, line) in enumerate(zip(ground_truth.labels, true_lines, strict=True)):
        distances = shapely.distance(_places(line)[:, None], drawn_lines[drawn.labels == label])  # [n, D]
        nearest = distances.min(axis=1, initial=np.inf)
        metres[index] = np.array([(nearest <= within_m).mean(), 1.0]) * line.length
    return metres


def length_f1(drawn: Vectors, ground_truth: Vectors, within_m: float = WITHIN_M[-1]) -> float | None:
    """How much of one sample's drawn and true lines lie within within_m of each other, in [0, 1].

    Harmonic mean of the share of the drawn length near a true line of the class and that of the true length near a
    drawn one; None where nothing is and nothing is drawn.
    """
    right, drawn_m = covered_length(ground_truth, drawn, within_m).sum(axis=0)
    shown, true_m = covered_length(drawn, ground_truth, within_m).sum(axis=0)
    if drawn_m + true_m == 0:
        return None
    if right == 0 or shown == 0:
        return 0.0
    return float(2 / (drawn_m / right + true_m / shown))


def line_rows(drawn: Vectors, ground_truth: Vectors) -> list[list[str]]:
    """A table of one sample's drawn lines, cells of text: where each lies, best scored first; the header is row 0.

    "not found" is what line_offsets has no true line for.
    """
    rows = [["drawn line", "score", "median offset", "farthest", *(f"within {limit:g} m" for limit in WITHIN_M)]]
    found = line_offsets(drawn, ground_truth)
    for index in np.argsort(-drawn.scores, kind="stable"):
        row = [CLASSES[drawn.labels[index]], f"{drawn.scores[index]:.2f}"]
        if found[index] is None:
            row += ["not found"] + [""] * (1 + len(WITHIN_M))
        else:
            offset = found[index].offset
            row += [f"{np.median(offset):.2f} m", f"{offset.max():.2f} m"]
            row += [f"{(offset <= limit).mean():.0%}" for limit in WITHIN_M]
        rows.append(row)
    return rows


def coverage_rows(drawn: Vectors, ground_truth: Vectors) -> list[list[str]]:
    """A table of one sample's true lines, cells of text: how much of each is drawn; the header is row 0."""
    rows = [["true line", "length", f"drawn within {COVERED_M:g} m"]]
    for label, (covered, whole) in zip(ground_truth.labels, covered_length(drawn, ground_truth), strict=True):
        rows.append([CLASSES[label], f"{whole:.1f} m", f"{covered / whole:.0%}"])
    return rows


def _places(line: shapely.LineString) -> np.ndarray:
    """Points along a line, STEP_M apart or less, [n]."""
    return shapely.points(shapely.get_coordinates(shapely.segmentize(line, STEP_M)))


def _lines(vectors: Vectors) -> np.ndarray:
    return np.array([shapely.linestrings(pts) for pts in vectors.pts_m], dtype=object)


def offset_rows(
    predictions: Mapping[str, Vectors], ground_truth: Mapping[str, Vectors], min_scores: np.ndarray
) -> list[dict]:
    """Offsets of a split's drawn lines, a row a class.

    predictions, ground_truth: by sample token; min_scores [C]: the score from which lines of a class are drawn. A row
    has the number of drawn lines, the share that is found (line_offsets), the share of the true lines' length that is
    drawn (covered_length), and for each band of distance from the car how many places of the found lines were judged,
    their median offset in metres, the one that nine in ten stay below, and the shares of them within WITHIN_M. None
    stands for what has nothing to judge.
    """
    of_class: list[list[Offsets | None]] = [[] for _ in CLASSES]
    metres = np.zeros((len(CLASSES), 2))  # of true lines: drawn, and in all
    for token, vectors in predictions.items():
        drawn, truth = vectors.at_least(min_scores), ground_truth[token]
        for label, offsets in zip(drawn.labels, line_offsets(drawn, truth), strict=True):
            of_class[label].append(offsets)
        np.add.at(metres, truth.labels, covered_length(drawn, truth))
    rows = []
    for name, min_score, lines, (covered, whole) in zip(CLASSES, min_scores, of_class, metres, strict=True):
        found = [offsets for offsets in lines if offsets is not None]
        rows.append({
            "name": name,
            "min_score": float(min_score),
            "drawn": len(lines),
            "found": len(found) / len(lines) if lines else None,
            "covered": float(covered / whole) if whole else None,
            "bands": [_band(found, low, high) for low, high in pairwise(BAND_EDGES_M)],
        })  # fmt: skip
    return rows


def _band(found: list[Offsets], low: float, high: float) -> dict:
    """What offset_rows says of the places from low to high metres from the car."""
    inside = [each.offset[(each.away >= low) & (each.away < high)] for each in found]
    offset = np.concatenate([np.zeros(0), *inside])
    if not len(offset):
        return {"from": low, "places": 0, "median": None, "nine_in_ten": None, "within": None}
    median, nine_in_ten = np.quantile(offset, (0.5, 0.9)).tolist()
    within = {f"{limit:g}": float((offset <= limit).mean()) for limit in WITHIN_M}
    return {"from": low, "places": len(offset), "median": median, "nine_in_ten": nine_in_ten, "within": within}
