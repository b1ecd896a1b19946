"""Chamfer average precision, as the two published evaluators compute it.

`maptr`: lines resampled to 100 points; a pair counts only if the lines widened by 2 m touch; mean over the
classes that have ground truth (Liao et al., MapTR, ICLR 2023). `streammapnet`: 200 points, every pair
counts, mean over all classes (Yuan et al., StreamMapNet, WACV 2024). Both: predictions in falling order of
score, each takes its nearest ground-truth line of the class and is false if that is too far or taken already;
AP is the area under the envelope of the precision-recall curve; no score threshold and no cap on predictions.

Published code breaks ties of scores by the order of the file. Here: by sample token, then by order in the
sample, so that neither the order of samples nor the number of ranks changes a figure.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np

from data.polylines import resample_lines
from evaluation.chamfer import chamfer_distances
from evaluation.line_buffers import bands_touch
from evaluation.vectors import Vectors, no_vectors
from utils.errors import UserError
from utils.frame import CLASSES

THRESHOLDS = (0.5, 1.0, 1.5)  # metres, for the 60 x 30 m range
WIDE_THRESHOLDS = (1.0, 1.5, 2.0)  # metres, for the 100 x 50 m range (StreamMapNet)


@dataclass(frozen=True)
class Protocol:
    """What differs between the published evaluators."""

    num_points: int  # of a resampled line
    half_width: float | None  # metres by which lines are widened for the candidate test; None: no test
    absent_class_counts: bool  # whether a class without ground truth enters the mean, with AP 0


PROTOCOLS = {
    "maptr": Protocol(num_points=100, half_width=2.0, absent_class_counts=False),
    "streammapnet": Protocol(num_points=200, half_width=None, absent_class_counts=True),
}


@dataclass(frozen=True)
class SampleMatches:
    """One sample's part of the result; N predictions, T thresholds, C classes. Ranks exchange these."""

    labels: np.ndarray  # [N] int
    scores: np.ndarray  # [N] float
    true_positive: np.ndarray  # [N, T] bool
    chamfer: np.ndarray  # [N] metres to the nearest ground truth, infinity beyond the largest threshold
    num_gt: np.ndarray  # [C] int


def thresholds_for(pc_range: Sequence[float]) -> tuple[float, ...]:
    """The published thresholds in metres for a range: the wider one counts from 40 m ahead on."""
    return WIDE_THRESHOLDS if pc_range[4] >= 40.0 else THRESHOLDS


def match_sample(
    predictions: Vectors,
    ground_truth: Vectors,
    protocol: str = "maptr",
    thresholds: Sequence[float] = THRESHOLDS,
) -> SampleMatches:
    """Match the scored predictions of one sample to its ground truth, at each threshold in metres."""
    rules = PROTOCOLS[protocol]
    num_gt = np.bincount(ground_truth.labels, minlength=len(CLASSES))
    true_positive = np.zeros((len(predictions), len(thresholds)), bool)
    chamfer = np.full(len(predictions), np.inf)
    if len(predictions) and len(ground_truth):
        distances = _distance_matrix(predictions, ground_truth, rules, max(thresholds))  # [N, G]
        nearest, chamfer = distances.argmin(axis=1), distances.min(axis=1)
        by_score = np.argsort(-predictions.scores, kind="stable")
        for column, threshold in enumerate(thresholds):
            close = by_score[chamfer[by_score] <= threshold]
            _, first = np.unique(nearest[close], return_index=True)  # the best-scored one of each line
            true_positive[close[first], column] = True
    return SampleMatches(predictions.labels, predictions.scores, true_positive, chamfer, num_gt)


def _distance_matrix(
    predictions: Vectors, ground_truth: Vectors, rules: Protocol, limit: float
) -> np.ndarray:
    """Chamfer distances [N, G] in metres; infinity for another class, no candidate, or beyond limit."""
    pred_lines = resample_lines(predictions.pts_m, rules.num_points)
    gt_lines = resample_lines(ground_truth.pts_m, rules.num_points)
    pred, gt = np.nonzero(predictions.labels[:, None] == ground_truth.labels[None])
    pair_distances = chamfer_distances(pred_lines, gt_lines, pred, gt, limit)
    if rules.half_width is not None:
        # Only pairs within the limit can match, so only they need the candidate test.
        close = np.flatnonzero(pair_distances <= limit)
        touch = bands_touch(pred_lines[pred[close]], gt_lines[gt[close]], rules.half_width)
        pair_distances[close[~touch]] = np.inf
    distances = np.full((len(predictions), len(ground_truth)), np.inf)
    distances[pred, gt] = pair_distances
    return distances


def average_precision(true_positive: np.ndarray, num_gt: int) -> float:
    """Area under the precision envelope; true_positive [N] bool, best score first. 0 without ground truth."""
    if num_gt == 0 or len(true_positive) == 0:
        return 0.0
    hits = np.cumsum(true_positive)
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[true_positive].sum() / num_gt)  # recall rises by 1 / num_gt at each hit


def summarize(
    matches: Mapping[str, SampleMatches],
    protocol: str = "maptr",
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict:
    """Per-sample matches by token, in any order, to the result that `evaluate` describes."""
    rules = PROTOCOLS[protocol]
    in_order = [matches[token] for token in sorted(matches)]
    if not in_order:  # no sample at all: nothing predicted, nothing there
        in_order = [match_sample(no_vectors(scored=True), no_vectors(scored=False), protocol, thresholds)]
    labels = np.concatenate([sample.labels for sample in in_order])
    scores = np.concatenate([sample.scores for sample in in_order])
    hits = np.concatenate([sample.true_positive for sample in in_order])
    chamfer = np.concatenate([sample.chamfer for sample in in_order])
    num_gt = np.sum([sample.num_gt for sample in in_order], axis=0)
    result = {"protocol": protocol, "thresholds": [float(threshold) for threshold in thresholds], "mAP": 0.0}
    details = {}
    for label, name in enumerate(CLASSES):
        of_class = np.flatnonzero(labels == label)
        of_class = of_class[np.argsort(-scores[of_class], kind="stable")]
        class_hits, count = hits[of_class], int(num_gt[label])
        scored = rules.absent_class_counts or count > 0
        aps = [average_precision(column, count) if scored else None for column in class_hits.T]
        result[name] = {f"AP@{float(at)}": ap for at, ap in zip(thresholds, aps, strict=True)}
        result[name]["AP"] = float(np.mean(aps)) if scored else None
        matched = class_hits[:, int(np.argmax(thresholds))]
        details[name] = {
            "num_gt": count,
            "num_pred": len(of_class),
            "recall": int(matched.sum()) / count if count else None,  # at the largest threshold
            "matched_chamfer": float(chamfer[of_class][matched].mean()) if matched.any() else None,  # metres
        }
    in_mean = [result[name]["AP"] for name in CLASSES if result[name]["AP"] is not None]
    result["mAP"] = float(np.mean(in_mean)) if in_mean else 0.0
    result["details"] = details
    return result


def evaluate(
    predictions: Mapping[str, Vectors],
    ground_truth: Mapping[str, Vectors],
    protocol: str = "maptr",
    thresholds: Sequence[float] = THRESHOLDS,
    num_workers: int = 1,
) -> dict:
    """Chamfer AP of scored predictions against ground truth, both by sample token.

    Returns {"protocol", "thresholds", "mAP", "<class>": {"AP@0.5", ..., "AP"}, "details"} with values in
    [0, 1]; under `maptr` the APs of a class without ground truth are None. "details" holds, per class, the
    counts, the recall and the mean Chamfer distance in metres of matched lines, both at the largest
    threshold. A sample without predictions counts as one with none. Raises UserError for a token that is not
    in the ground truth and for an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is unknown, expected one of {', '.join(PROTOCOLS)}")
    unknown = predictions.keys() - ground_truth.keys()
    if unknown:
        raise UserError(
            f"predictions: {len(unknown)} of {len(predictions)} sample tokens are not in the ground truth "
            f"(the first: {min(unknown)}), expected the same split; give the ground truth of that split"
        )
    tokens = list(ground_truth)
    predicted = [predictions.get(token, no_vectors(scored=True)) for token in tokens]
    true = [ground_truth[token] for token in tokens]
    match = partial(match_sample, protocol=protocol, thresholds=tuple(thresholds))
    if num_workers > 1:
        # spawn: the caller may hold threads and a CUDA context, which do not survive a fork.
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            matches = list(pool.map(match, predicted, true, chunksize=64))
    else:
        matches = list(map(match, predicted, true))
    return summarize(dict(zip(tokens, matches, strict=True)), protocol, thresholds)


def format_table(result: dict) -> str:
    """The result of `evaluate` as an aligned text table: a row a class, a column a threshold, mAP last."""
    ap_names = [f"AP@{threshold}" for threshold in result["thresholds"]] + ["AP"]
    recall_name = f"recall@{max(result['thresholds'])}"
    rows = [[f"Chamfer AP ({result['protocol']})", *ap_names, recall_name, "matched m", "truth", "predicted"]]
    for name in CLASSES:
        details = result["details"][name]
        aps = [_cell(result[name][column]) for column in ap_names]
        extras = [_cell(details["recall"]), _cell(details["matched_chamfer"])]
        rows.append([name, *aps, *extras, str(details["num_gt"]), str(details["num_pred"])])
    rows.append(["mAP", *[""] * (len(ap_names) - 1), _cell(result["mAP"]), "", "", "", ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
