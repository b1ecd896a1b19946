"""Chamfer distances between polylines, many pairs at a time."""

# K pairs, n points of a line

import numpy as np
from scipy.spatial.distance import cdist

# Distance matrices of so many numbers are made at a time: fewer calls, and each still in the cache when it is read.
NUMBERS_AT_A_TIME = 40_000


def chamfer_distances(
    lines_a: np.ndarray, lines_b: np.ndarray, index_a: np.ndarray, index_b: np.ndarray, limit: float
) -> np.ndarray:
    """Symmetric mean Chamfer distances [K] in metres of the pairs (lines_a[index_a], lines_b[index_b]).

    lines_a [A, n, 2] and lines_b [B, n, 2] in metres; the distance is
    (mean over a of min over b |a - b| + mean over b of min over a |a - b|) / 2. Pairs farther apart than
    `limit` may come back as infinity: most are ruled out by the distances to each other's bounding boxes, a
    lower bound that costs n instead of n * n.
    """
    distances = np.full(len(index_a), np.inf)
    if len(index_a) == 0:
        return distances
    low_a, high_a = lines_a.min(axis=1), lines_a.max(axis=1)  # [A, 2]
    low_b, high_b = lines_b.min(axis=1), lines_b.max(axis=1)
    gaps = np.maximum(low_a[index_a] - high_b[index_b], low_b[index_b] - high_a[index_a])
    near = np.flatnonzero(np.hypot(*np.maximum(gaps, 0.0).T) <= limit)

    bound = _mean_distance_to_box(lines_a[index_a[near]], low_b[index_b[near]], high_b[index_b[near]])
    bound += _mean_distance_to_box(lines_b[index_b[near]], low_a[index_a[near]], high_a[index_a[near]])
    near = near[bound / 2 <= limit]

    distances[near] = _distances_of_all(lines_a, lines_b, index_a[near], index_b[near])
    return distances


def _distances_of_all(
    lines_a: np.ndarray, lines_b: np.ndarray, index_a: np.ndarray, index_b: np.ndarray
) -> np.ndarray:
    """The distances [K] of chamfer_distances for all of these pairs; those of one line of b share matrices."""
    count, points = len(index_a), lines_a.shape[1]
    squared_from_a, squared_from_b = np.empty((count, points)), np.empty((count, points))
    most = max(1, NUMBERS_AT_A_TIME // points**2)
    for line in np.unique(index_b):
        of_line = np.flatnonzero(index_b == line)
        for start in range(0, len(of_line), most):
            pairs = of_line[start : start + most]
            squared = cdist(lines_a[index_a[pairs]].reshape(-1, 2), lines_b[line], "sqeuclidean")
            squared = squared.reshape(len(pairs), points, points)
            squared_from_a[pairs], squared_from_b[pairs] = squared.min(axis=2), squared.min(axis=1)
    return (np.sqrt(squared_from_a).mean(axis=1) + np.sqrt(squared_from_b).mean(axis=1)) / 2


def _mean_distance_to_box(lines: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mean distance [K] of the points of lines [K, n, 2] to axis-aligned boxes (low [K, 2], high [K, 2])."""
    outside = np.maximum(np.maximum(low[:, None] - lines, lines - high[:, None]), 0.0)
    return np.hypot(outside[..., 0], outside[..., 1]).mean(axis=1)
