"""Vectors in the JSON files of the two published code bases.

MapTR: predictions (nuscmap_results.json) are {"meta", "results": [{"sample_token", "vectors": [{"pts",
"type", "confidence_level", ...}]}]}, ground truth {"GTs": [the same without confidence]}; metres, LiDAR
frame.
StreamMapNet: predictions {"meta", "results": {token: {"vectors", "scores", "labels"}}}; its classes are
ped_crossing, divider, boundary, and its own files are in the ego frame. Files written here say their frame in
"meta". Coordinates are passed through as they are.
"""

import json
import os
from collections.abc import Mapping

import numpy as np

from evaluation.frames import METRIC_FRAMES
from evaluation.vectors import Vectors
from utils.errors import UserError
from utils.files import replacing
from utils.frame import CLASSES

# No nuScenes map reaches that far from its origin, in metres; a line beyond would take gigabytes to draw.
FARTHEST_M = 1e5
STREAMMAPNET_CLASSES = ("ped_crossing", "divider", "boundary")


def read_predictions(path: str | os.PathLike) -> tuple[dict[str, Vectors], str]:
    """Scored vectors by sample token from a file of either family, and their frame, one of METRIC_FRAMES.

    Raises UserError for anything amiss in the file.
    """
    content = _read_json(path)
    results = content.get("results") if isinstance(content, dict) else None
    if isinstance(results, list):
        return _from_maptr(path, results, scored=True), _frame_of(path, content, "lidar")
    if isinstance(results, dict):
        return _from_streammapnet(path, results), _frame_of(path, content, "ego")
    fix = "this is a ground-truth file; exchange the two" if _has_gts(content) else "give a predictions file"
    raise UserError(f'{path}: no "results", expected MapTR or StreamMapNet predictions; {fix}')


def read_ground_truth(path: str | os.PathLike) -> dict[str, Vectors]:
    """Vectors without scores by sample token from MapTR's {"GTs": [...]}; UserError for anything amiss."""
    content = _read_json(path)
    if not _has_gts(content):
        raise UserError(f'{path}: no "GTs" list, expected MapTR ground truth; give a ground-truth file')
    return _from_maptr(path, content["GTs"], scored=False)


def write_maptr_predictions(path: str | os.PathLike, predictions: Mapping[str, Vectors], meta: dict) -> None:
    """Write scored vectors as MapTR's nuscmap_results.json."""
    _write_json(path, {"meta": meta, "results": _to_maptr(predictions)})


def write_maptr_ground_truth(path: str | os.PathLike, ground_truth: Mapping[str, Vectors]) -> None:
    """Write vectors as MapTR's ground-truth file."""
    _write_json(path, {"GTs": _to_maptr(ground_truth)})


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
    _write_json(path, {"meta": meta, "results": results})


def _frame_of(path: str | os.PathLike, content: dict, usual: str) -> str:
    """The frame that the file names, else the one its family uses."""
    meta = content.get("meta")
    frame = meta.get("frame", usual) if isinstance(meta, dict) else usual
    if frame not in METRIC_FRAMES:
        raise UserError(f"{path}: frame {frame!r}, expected {', '.join(METRIC_FRAMES)}; write it in one of these")
    return frame


def _has_gts(content: object) -> bool:
    return isinstance(content, dict) and isinstance(content.get("GTs"), list)


def _from_maptr(path: str | os.PathLike, samples: list, scored: bool) -> dict[str, Vectors]:
    by_token: dict[str, Vectors] = {}
    for sample in samples:
        try:
            token, lines = sample["sample_token"], sample["vectors"]
            labels = [line["type"] for line in lines]
            names = [line.get("cls_name") for line in lines]
            pts = [line["pts"] for line in lines]
            scores = [line["confidence_level"] for line in lines] if scored else None
        except (KeyError, TypeError, AttributeError) as error:
            fields = "pts, type and confidence_level" if scored else "pts and type"
            raise UserError(
                f"{path}: entry {len(by_token)} lacks {error}, expected MapTR's sample_token and vectors "
                f"with {fields}; write the file again"
            ) from None
        if token in by_token:
            raise UserError(f"{path}: sample token {token} twice, expected once; write the file again")
        by_token[token] = _checked(f"{path}: sample {token}", labels, pts, scores, CLASSES)
        for index, (label, name) in enumerate(zip(labels, names, strict=True)):
            if name is not None and name != CLASSES[label]:
                raise UserError(
                    f"{path}: sample {token}: vector {index} has type {label} and cls_name {name!r}, "
                    f"expected {CLASSES[label]!r}; number the classes {', '.join(CLASSES)}"
                )
    return by_token


def _from_streammapnet(path: str | os.PathLike, results: dict) -> dict[str, Vectors]:
    ours = np.array([CLASSES.index(name) for name in STREAMMAPNET_CLASSES])
    by_token = {}
    for token, sample in results.items():
        try:
            labels, pts, scores = sample["labels"], sample["vectors"], sample["scores"]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: sample {token} lacks {error}, expected StreamMapNet's vectors, scores and labels; "
                "write the file again"
            ) from None
        vectors = _checked(f"{path}: sample {token}", labels, pts, scores, STREAMMAPNET_CLASSES)
        by_token[token] = Vectors(ours[vectors.labels], vectors.pts_m, vectors.scores)
    return by_token


def _checked(where: str, labels: list, pts: list, scores: list | None, classes: tuple[str, ...]) -> Vectors:
    """Lists from a file as Vectors; UserError, beginning with `where`, for the first value that is wrong."""
    if len(labels) != len(pts) or (scores is not None and len(scores) != len(pts)):
        count = "no" if scores is None else len(scores)
        raise UserError(
            f"{where}: {len(pts)} vectors, {len(labels)} labels, {count} scores, expected one each; "
            "write the file again"
        )
    lines = []
    for index, (label, line) in enumerate(zip(labels, pts, strict=True)):
        if type(label) is not int or not 0 <= label < len(classes):
            raise UserError(
                f"{where}: vector {index} has label {label!r}, expected 0 to {len(classes) - 1} "
                f"({', '.join(classes)}); map the classes to these"
            )
        try:
            array = np.array(line, np.float64)
        except (TypeError, ValueError):
            array = np.zeros(0)
        if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] != 2:
            raise UserError(
                f"{where}: vector {index} has points of shape {list(array.shape)}, expected [n, 2] with n at "
                "least 2; leave such lines out"
            )
        if not np.isfinite(array).all():
            raise UserError(
                f"{where}: vector {index} has coordinates that are not finite, expected metres; leave it out"
            )
        if np.abs(array).max() > FARTHEST_M:
            raise UserError(
                f"{where}: vector {index} has a coordinate of {np.abs(array).max():g}, expected metres within "
                f"{FARTHEST_M:g}; leave it out"
            )
        lines.append(array)
    for index, score in enumerate(scores or []):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0.0 <= score <= 1.0:
            raise UserError(f"{where}: vector {index} has score {score!r}, expected 0 to 1; apply a sigmoid")
    return Vectors(
        np.array(labels, np.int64), lines, None if scores is None else np.array(scores, np.float64)
    )


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


def _read_json(path: str | os.PathLike) -> object:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a JSON file; give the path of one") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}), expected a whole JSON file; write it again") from None


def _write_json(path: str | os.PathLike, content: dict) -> None:
    with replacing(path) as file:
        file.write(json.dumps(content, allow_nan=False).encode())
