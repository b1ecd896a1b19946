"""How well one sample is predicted, in one figure: to choose what to look at, not to compare detectors."""

from dataclasses import dataclass

import numpy as np

from evaluation.chamfer_ap import match_sample
from evaluation.vectors import Vectors

F1_THRESHOLD = 1.0  # metres


@dataclass(frozen=True)
class SampleF1:
    """Counts of one sample, all classes together, by the `maptr` protocol at F1_THRESHOLD."""

    true: int  # predictions that are the first to match their ground-truth line
    false: int  # the other predictions
    missed: int  # ground-truth lines without a match

    @property
    def value(self) -> float | None:
        """F1, the harmonic mean of precision and recall, in [0, 1]; None where nothing is and nothing is predicted."""
        total = 2 * self.true + self.false + self.missed
        return 2 * self.true / total if total else None


def sample_f1(predictions: Vectors, ground_truth: Vectors) -> SampleF1:
    """Judge one sample; every prediction given counts, so leave out those below a score threshold before."""
    matches = match_sample(predictions, ground_truth, "maptr", (F1_THRESHOLD,))
    true = int(matches.true_positive.sum())
    return SampleF1(true, len(predictions) - true, len(ground_truth) - true)


def rank_by_f1(scores: list[SampleF1], best_first: bool) -> list[int]:
    """Positions of the samples in order of F1, those without a figure left out.

    Of equal ones the sample with more ground truth comes first, since it says more; then the earlier one.
    """
    order = np.flatnonzero([score.value is not None for score in scores])
    sign = -1.0 if best_first else 1.0
    return sorted(order.tolist(), key=lambda i: (sign * scores[i].value, -scores[i].true - scores[i].missed))
