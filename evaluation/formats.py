"""Vectors in the JSON files of the two published code bases.

MapTR: predictions (nuscmap_results.json) are {"meta", "results": [{"sample_token", "vectors": [{"pts",
"type", "confidence_level", ...}]}]}, ground truth {"GTs": [the same without confidence]}; metres, LiDAR
frame.
StreamMapNet: predictions {"meta", "results": {token: {"vectors", "scores", "labels"}}}; its classes are
ped_crossing, divider, boundary, and its own files are in the ego frame. Files written here say their frame in
"meta". Coordinates are passed through as they are.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluation.frames import METRIC_FRAMES
from evaluation.json_files import read_json, shown, write_json
from evaluation.vectors import Vectors
from utils.errors import UserError
from utils.frame import CLASSES

# No nuScenes map reaches that far from its origin, in metres; a line beyond would take gigabytes to draw.
FARTHEST_M = 1e5
STREAMMAPNET_CLASSES = ("ped_crossing", "divider", "boundary")


class Predictions(NamedTuple):
    """What a predictions file holds."""

    by_token: dict[str, Vectors]  # scored, in the frame below
    frame: str  # one of METRIC_FRAMES
    pc_range: tuple[float, ...] | None  # in metres, where the file names it, as those of tools/predict.py do


def read_predictions(path: str | os.PathLike) -> Predictions:
    """Scored vectors from a file of either family. Raises UserError for anything amiss in the file."""
    content = read_json(path)
    results = content.get("results") if isinstance(content, dict) else None
    if isinstance(results, list):
        by_token, usual_frame = _from_maptr(path, results, scored=True), "lidar"
    elif isinstance(results, dict):
        by_token, usual_frame = _from_streammapnet(path, results), "ego"
    else:
        fix = "this is a ground-truth file; exchange the two" if _has_gts(content) else "give a predictions file"
        raise UserError(f'{path}: no "results", expected MapTR or StreamMapNet predictions; {fix}')
    meta = content.get("meta") if isinstance(content.get("meta"), dict) else {}
    frame = meta.get("frame", usual_frame)
    if frame not in METRIC_FRAMES:
        raise UserError(
            f"{path}: frame {shown(frame)}, expected {', '.join(METRIC_FRAMES)}; write it in one of these"
        )
    return Predictions(by_token, frame, _range_of(path, meta))


def read_ground_truth(path: str | os.PathLike) -> dict[str, Vectors]:
    """Vectors without scores by sample token from MapTR's {"GTs": [...]}; UserError for anything amiss."""
    content = read_json(path)
    if not _has_gts(content):
        raise UserError(f'{path}: no "GTs" list, expected MapTR ground truth; give a ground-truth file')
    return _from_maptr(path, content["GTs"], scored=False)


def write_maptr_predictions(path: str | os.PathLike, predictions: Mapping[str, Vectors], meta: dict) -> None:
    """Write scored vectors as MapTR's nuscmap_results.json."""
    write_json(path, {"meta": meta, "results": _to_maptr(predictions)})


def write_maptr_ground_truth(path: str | os.PathLike, ground_truth: Mapping[str, Vectors]) -> None:
    """Write vectors as MapTR's ground-truth file."""
    write_json(path, {"GTs": _to_maptr(ground_truth)})


def write_streammapnet_predictions(
    path: str | os.PathLike, predictions: Mapping[str, Vectors], meta: dict
) -> None:
    """Write scored vectors as StreamMapNet's submission, labels in its order of classes."""
    results = {
        token: {
            "vectors": [_coordinates(pts) for pts in vectors.pts_m],
            "scores": [float(score) for score in vectors.scores],
            "labels": [STREAMMAPNET_CLASSES.index(CLASSES[label]) for label in vectors.labels],
        }
        for token, vectors in predictions.items()
    }
    write_json(path, {"meta": meta, "results": results})


def _range_of(path: str | os.PathLike, meta: dict) -> tuple[float, ...] | None:
    """The pc_range that the file names, None where it names none."""
    found = meta.get("pc_range")
    if found is None:
        return None
    numbers = isinstance(found, list) and all(type(value) in (int, float) for value in found)
    if not numbers or len(found) != 6 or not all(abs(value) <= FARTHEST_M for value in found):
        raise UserError(
            f"{path}: pc_range {shown(found)}, expected x_min, y_min, z_min, x_max, y_max, z_max in metres; "
            "write it so or leave it out"
        )
    return tuple(map(float, found))


def _has_gts(content: object) -> bool:
    return isinstance(content, dict) and isinstance(content.get("GTs"), list)


def _from_maptr(path: str | os.PathLike, samples: list, scored: bool) -> dict[str, Vectors]:
    fields = ("pts", "type", "confidence_level") if scored else ("pts", "type")
    by_token: dict[str, Vectors] = {}
    for position, sample in enumerate(samples):
        where = f"{path}: entry {position}"
        token, entries = _fields(where, sample, ("sample_token", "vectors"))
        if not isinstance(token, str):
            raise UserError(f"{where}: sample_token {shown(token)}, expected a string; write the file again")
        if token in by_token:
            raise UserError(f"{path}: sample token {shown(token)} twice, expected once; write the file again")
        where = f"{path}: sample {shown(token)}"
        _require_lists(where, vectors=entries)
        columns = [_fields(f"{where}: vector {index}", entry, fields) for index, entry in enumerate(entries)]
        pts, labels, *scores = zip(*columns, strict=True) if columns else [()] * len(fields)
        by_token[token] = _checked(where, labels, pts, scores[0] if scored else None, CLASSES)
        for index, (label, entry) in enumerate(zip(labels, entries, strict=True)):
            name = entry.get("cls_name")
            if name is not None and name != CLASSES[label]:
                raise UserError(
                    f"{where}: vector {index} has type {label} and cls_name {shown(name)}, "
                    f"expected {CLASSES[label]!r}; number the classes {', '.join(CLASSES)}"
                )
    return by_token


def _from_streammapnet(path: str | os.PathLike, results: dict) -> dict[str, Vectors]:
    ours = np.array([CLASSES.index(name) for name in STREAMMAPNET_CLASSES])
    by_token = {}
    for token, sample in results.items():
        where = f"{path}: sample {shown(token)}"
        pts, scores, labels = _fields(where, sample, ("vectors", "scores", "labels"))
        _require_lists(where, vectors=pts, scores=scores, labels=labels)
        vectors = _checked(where, labels, pts, scores, STREAMMAPNET_CLASSES)
        by_token[token] = Vectors(ours[vectors.labels], vectors.pts_m, vectors.scores)
    return by_token


def _fields(where: str, content: object, names: tuple[str, ...]) -> list:
    """The values of these names in a JSON object; UserError, beginning with `where`, for one that it lacks."""
    absent = [name for name in names if not isinstance(content, dict) or name not in content]
    if absent:
        raise UserError(f"{where}: lacks {absent[0]}, expected {', '.join(names)}; write the file again")
    return [content[name] for name in names]


def _require_lists(where: str, **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, list):
            raise UserError(f"{where}: {name} {shown(value)}, expected a list; write the file again")


def _checked(
    where: str, labels: Sequence, pts: Sequence, scores: Sequence | None, classes: tuple[str, ...]
) -> Vectors:
    """Values from a file as Vectors; UserError, beginning with `where`, for the first value that is wrong."""
    if len(labels) != len(pts) or (scores is not None and len(scores) != len(pts)):
        count = "no" if scores is None else len(scores)
        raise UserError(
            f"{where}: {len(pts)} vectors, {len(labels)} labels, {count} scores, expected one each; "
            "write the file again"
        )
    for index, (label, line) in enumerate(zip(labels, pts, strict=True)):
        if type(label) is not int or not 0 <= label < len(classes):
            raise UserError(
                f"{where}: vector {index} has label {shown(label)}, expected 0 to {len(classes) - 1} "
                f"({', '.join(classes)}); map the classes to these"
            )
        fault = _fault_of(line)
        if fault:
            raise UserError(f"{where}: vector {index} has {fault}")
    for index, score in enumerate(scores or []):
        if type(score) not in (int, float) or not 0.0 <= score <= 1.0:
            raise UserError(f"{where}: vector {index} has score {shown(score)}, expected 0 to 1; apply a sigmoid")
    return Vectors(
        np.array(labels, np.int64), list(pts), None if scores is None else np.array(scores, np.float64)
    )


def _fault_of(line: object) -> str | None:
    """What is wrong with a line from read_json, with the fix; None for a good one: a finite array [n, 2], n >= 2."""
    if not isinstance(line, np.ndarray):
        return _fault_of_lists(line)
    if line.ndim == 2 and line.shape[1] == 3:
        return f"points of shape {list(line.shape)}, expected [n, 2]; drop the third column"
    if line.ndim != 2 or line.shape[0] < 2 or line.shape[1] != 2:
        return f"points of shape {list(line.shape)}, expected [n, 2] with n at least 2; leave such lines out"
    farthest = float(np.abs(line).max())
    if not math.isfinite(farthest):
        return "coordinates that are not finite, expected metres; leave it out"
    return _too_far(farthest) if farthest > FARTHEST_M else None


def _fault_of_lists(line: object) -> str:
    """What keeps a line from being an array of numbers, with the fix."""
    if not isinstance(line, list) or not all(isinstance(point, list) for point in line):
        return f"points {shown(line)}, expected a list of [x, y]; write it so"
    for value in (value for point in line for value in point):
        if type(value) not in (int, float):
            return f"the coordinate {shown(value)}, expected a number; write it as one"
        if abs(value) > FARTHEST_M:
            return _too_far(value)
    return "points of unequal length, expected [n, 2] with n at least 2; leave such lines out"


def _too_far(value: float) -> str:
    return f"a coordinate of {shown(value)}, expected metres within {FARTHEST_M:g}; leave it out"


def _to_maptr(by_token: Mapping[str, Vectors]) -> list[dict]:
    samples = []
    for token, vectors in by_token.items():
        lines = []
        for index, (label, pts) in enumerate(zip(vectors.labels, vectors.pts_m, strict=True)):
            line = {"pts": _coordinates(pts), "pts_num": len(pts)}
            line |= {"cls_name": CLASSES[label], "type": int(label)}
            if vectors.scores is not None:
                line["confidence_level"] = float(vectors.scores[index])
            lines.append(line)
        samples.append({"sample_token": token, "vectors": lines})
    return samples


def _coordinates(pts: np.ndarray) -> list[list[float]]:
    """To a tenth of a millimetre: below it there is nothing but digits."""
    return np.round(np.asarray(pts, np.float64), 4).tolist()
