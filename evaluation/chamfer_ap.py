"""Chamfer average precision, as the two published evaluators compute it.

`maptr`: lines resampled to 100 points; a pair counts only if the lines widened by 2 m touch; mean over the
classes that have ground truth, as in its tables per threshold (Liao et al., MapTR, ICLR 2023; the mean over thresholds
that its code prints last counts an absent class as 0, which matters for small subsets only). `streammapnet`: 200
points, every pair counts, mean over all classes (Yuan et al., StreamMapNet, WACV 2024). Both: predictions in falling
order of score, each takes its nearest ground-truth line of the class and is false if that is too far or taken already;
AP is the area under the envelope of the precision-recall curve; no score threshold and no cap on predictions.

Published code breaks ties of scores by the order of the file. Here: by sample token, then by order in the
sample, so that neither the order of samples nor the number of ranks changes a figure.
"""

import math
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
from utils.errors import UserError, naming_killed_workers
from utils.frame import CLASSES
from utils.text_table import align_columns, format_score

THRESHOLDS = (0.5, 1.0, 1.5)  # metres, for the 60 x 30 m range
WIDE_THRESHOLDS = (1.0, 1.5, 2.0)  # metres, for the 100 x 50 m range (StreamMapNet)
FOUND_SHARE = 0.25  # of the true lines


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
    chamfer: np.ndarray  # [N] metres to the nearest ground truth; beyond the largest threshold infinity or more than it
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
    """Chamfer distances [N, G] in metres; infinity for another class and no candidate, beyond limit perhaps."""
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


@dataclass(frozen=True)
class ClassHits:
    """All predictions of one class over the samples, best score first; N predictions, T thresholds."""

    scores: np.ndarray  # [N]
    true_positive: np.ndarray  # [N, T] bool
    chamfer: np.ndarray  # [N] metres, as in SampleMatches
    num_gt: int


def hits_by_class(matches: Mapping[str, SampleMatches], num_thresholds: int) -> list[ClassHits]:
    """The matches of all samples, given by token in any order, gathered for each of CLASSES."""
    in_order = [matches[token] for token in sorted(matches)]
    labels = np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in in_order)])
    scores = np.concatenate([np.zeros(0), *(sample.scores for sample in in_order)])
    chamfer = np.concatenate([np.zeros(0), *(sample.chamfer for sample in in_order)])
    hits = np.concatenate([np.zeros((0, num_thresholds), bool), *(sample.true_positive for sample in in_order)])
    num_gt = np.sum([np.zeros(len(CLASSES), np.int64), *(sample.num_gt for sample in in_order)], axis=0)
    by_class = []
    for label in range(len(CLASSES)):
        of_class = np.flatnonzero(labels == label)
        of_class = of_class[np.argsort(-scores[of_class], kind="stable")]
        by_class.append(ClassHits(scores[of_class], hits[of_class], chamfer[of_class], int(num_gt[label])))
    return by_class


def precision_recall(true_positive: np.ndarray, num_gt: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision [N] and recall [N] after each prediction; true_positive [N] bool, best score first; num_gt > 0."""
    hits = np.cumsum(true_positive)
    return hits / np.arange(1, len(hits) + 1), hits / num_gt


def best_f1(of_class: ClassHits, thresholds: Sequence[float]) -> dict[str, float] | None:
    """The score with the highest F1, from which on lines are drawn, and what it gives; None without a hit.

    It is judged at the smallest distance threshold that suits, "threshold" in the result: what is drawn should lie on
    the paint. A threshold at which hardly a line is found says nothing of scores, as early in a training, so
    FOUND_SHARE of the true lines must be found there; where no threshold has so many, the largest counts.
    Predictions of equal score are kept or dropped together, as a threshold on the score would do.
    """
    found = of_class.true_positive.sum(axis=0)  # [T]
    in_order = np.argsort(thresholds)
    enough = [column for column in in_order if found[column] >= FOUND_SHARE * of_class.num_gt]
    column = int(enough[0] if enough else in_order[-1])
    if of_class.num_gt == 0 or not of_class.true_positive[:, column].any():
        return None
    precision, recall = precision_recall(of_class.true_positive[:, column], of_class.num_gt)
    last_of_score = np.append(np.diff(of_class.scores) != 0, True)
    f1 = np.where(last_of_score, 2 * precision * recall / np.maximum(precision + recall, 1e-12), -1.0)
    best = int(np.argmax(f1))
    figures = {"f1": f1, "precision": precision, "recall": recall, "score": of_class.scores}
    return {"threshold": float(thresholds[column])} | {name: float(values[best]) for name, values in figures.items()}


def summarize(
    matches: Mapping[str, SampleMatches],
    protocol: str = "maptr",
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict:
    """Per-sample matches by token, in any order, to the result that `evaluate` describes."""
    rules = PROTOCOLS[protocol]
    largest = int(np.argmax(thresholds))
    result = {"protocol": protocol, "thresholds": [float(threshold) for threshold in thresholds], "mAP": 0.0}
    details = {}
    for name, of_class in zip(CLASSES, hits_by_class(matches, len(thresholds)), strict=True):
        count = of_class.num_gt
        scored = rules.absent_class_counts or count > 0
        aps = [average_precision(column, count) if scored else None for column in of_class.true_positive.T]
        result[name] = {f"AP@{float(at)}": ap for at, ap in zip(thresholds, aps, strict=True)}
        result[name]["AP"] = float(np.mean(aps)) if scored else None
        matched = of_class.true_positive[:, largest]
        details[name] = {
            "num_gt": count,
            "num_pred": len(matched),
            "recall": int(matched.sum()) / count if count else None,
            "matched_chamfer": float(of_class.chamfer[matched].mean()) if matched.any() else None,  # metres
            "best_f1": best_f1(of_class, thresholds),
        }
    in_mean = [result[name]["AP"] for name in CLASSES if result[name]["AP"] is not None]
    result["mAP"] = float(np.mean(in_mean)) if in_mean else math.nan
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
    [0, 1]; under `maptr` the APs of a class without ground truth are None, and without any ground truth the mAP
    is NaN. "details" holds, per class, the counts; at the largest threshold the recall and the mean Chamfer distance in
    metres of matched lines; and what best_f1 returns. A sample without predictions counts as one with none. Raises as
    match_samples does.
    """
    matches = match_samples(predictions, ground_truth, protocol, thresholds, num_workers)
    return summarize(matches, protocol, thresholds)


def match_samples(
    predictions: Mapping[str, Vectors],
    ground_truth: Mapping[str, Vectors],
    protocol: str = "maptr",
    thresholds: Sequence[float] = THRESHOLDS,
    num_workers: int = 1,
) -> dict[str, SampleMatches]:
    """match_sample for every sample of the ground truth, by token.

    Raises UserError for a token that is not in the ground truth and for an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is unknown, expected one of {', '.join(PROTOCOLS)}")
    check_tokens(predictions, ground_truth)
    tokens = list(ground_truth)
    predicted = [predictions.get(token, no_vectors(scored=True)) for token in tokens]
    true = [ground_truth[token] for token in tokens]
    match = partial(match_sample, protocol=protocol, thresholds=tuple(thresholds))
    if num_workers > 1:
        # spawn: the caller may hold threads and a CUDA context, which do not survive a fork.
        pool = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))
        with naming_killed_workers(num_workers), pool:
            matches = list(pool.map(match, predicted, true, chunksize=64))
    else:
        matches = list(map(match, predicted, true))
    return dict(zip(tokens, matches, strict=True))


def check_tokens(predictions: Mapping[str, Vectors], ground_truth: Mapping[str, Vectors]) -> None:
    """Raise UserError when a sample of the predictions is not in the ground truth."""
    unknown = predictions.keys() - ground_truth.keys()
    if unknown:
        raise UserError(
            f"predictions: {len(unknown)} of {len(predictions)} sample tokens are not in the ground truth "
            f"(the first: {min(unknown)}), expected the same split; give the ground truth of that split"
        )


def format_table(result: dict) -> str:
    """The result of `evaluate` as an aligned text table: a row a class, a column a threshold, mAP last."""
    ap_names = [f"AP@{threshold}" for threshold in result["thresholds"]] + ["AP"]
    recall = f"recall@{max(result['thresholds'])}"
    extra_names = [recall, "matched m", "best F1", "at m", "precision", "score", "truth", "predicted"]
    rows = [[f"Chamfer AP ({result['protocol']})", *ap_names, *extra_names]]
    for name in CLASSES:
        details = result["details"][name]
        aps = [format_score(result[name][column]) for column in ap_names]
        best = details["best_f1"] or {}
        at_best = [best.get(key) for key in ("f1", "threshold", "precision", "score")]
        extras = [details["recall"], details["matched_chamfer"], *at_best]
        rows.append([name, *aps, *map(format_score, extras), str(details["num_gt"]), str(details["num_pred"])])
    rows.append(["mAP", *[""] * (len(ap_names) - 1), format_score(result["mAP"]), *[""] * len(extra_names)])
    return "\n".join(align_columns(rows))
