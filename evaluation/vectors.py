"""The map of one sample as labelled polylines: what ground truth and predictions have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.gt_cache import GTCache


@dataclass(frozen=True)
class Vectors:
    """Labelled polylines of one sample, in metres, in the LiDAR frame (utils/frame.py) where nothing else is said.

    A closed ring repeats its first point. Ground truth has no scores.
    """

    labels: np.ndarray  # [N] int64, index into CLASSES
    pts_m: Sequence[np.ndarray]  # N arrays [n, 2]
    scores: np.ndarray | None = None  # [N] float in [0, 1]

    def __post_init__(self):
        assert len(self.labels) == len(self.pts_m), (len(self.labels), len(self.pts_m))
        assert self.scores is None or len(self.scores) == len(self.labels), len(self.scores)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: np.ndarray) -> "Vectors":
        """The lines where keep [N] is True."""
        return Vectors(
            self.labels[keep],
            [pts for pts, wanted in zip(self.pts_m, keep, strict=True) if wanted],
            None if self.scores is None else self.scores[keep],
        )

    def at_least(self, min_scores: np.ndarray) -> "Vectors":
        """The lines whose score reaches that of their class, min_scores [C]."""
        return self.select(self.scores >= min_scores[self.labels])


def no_vectors(scored: bool) -> Vectors:
    """A sample without any line; scored: with an (empty) score array, as predictions have."""
    return Vectors(np.zeros(0, np.int64), [], np.zeros(0) if scored else None)


def ground_truth_of(cache: GTCache) -> dict[str, Vectors]:
    """The cache's polylines by sample token, as they were cut from the map (not resampled)."""
    records = (cache[index] for index in range(len(cache)))
    return {record.sample_token: Vectors(record.labels, record.pts_m) for record in records}
