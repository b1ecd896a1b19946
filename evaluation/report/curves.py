"""Figures behind the charts of a report: precision over recall, running means."""

import numpy as np

from evaluation.chamfer_ap import precision_recall


def precision_recall_steps(true_positive: np.ndarray, num_gt: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the precision envelope over recall: recall [K] and precision [K]; the area below is the AP.

    true_positive [N] bool, best score first. Empty without ground truth or without a hit.
    """
    if num_gt == 0 or not true_positive.any():
        return np.zeros(0), np.zeros(0)
    precision, recall = precision_recall(true_positive, num_gt)
    envelope = np.maximum.accumulate(precision[::-1])[::-1][true_positive]  # at each hit
    recall = recall[true_positive]
    last = np.append(np.diff(envelope) != 0, True)  # hits of equal precision make one tread
    envelope, recall = envelope[last], recall[last]
    start = np.concatenate([[0.0], recall[:-1]])
    corners = np.stack([start, recall], axis=1).ravel(), np.repeat(envelope, 2)
    return np.append(corners[0], recall[-1]), np.append(corners[1], 0.0)  # beyond the last hit there is none


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the finite ones of `window` (odd) values around each [N], fewer at the ends; NaN where none is."""
    if len(values) == 0:  # numpy refuses to convolve nothing
        return values
    finite = np.isfinite(values)
    ones = np.ones(window)
    count = np.convolve(finite, ones)[window // 2 :][: len(values)]
    total = np.convolve(np.where(finite, values, 0.0), ones)[window // 2 :][: len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)
