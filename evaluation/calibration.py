"""What a score is worth: the share of true positives among predictions of about that score."""

from dataclasses import dataclass

import numpy as np

NUM_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Predictions gathered by score; K bins that hold any."""

    score: np.ndarray  # [K] mean score
    true_share: np.ndarray  # [K] share of true positives
    count: np.ndarray  # [K] predictions
    bin: np.ndarray  # [K] which of NUM_BINS equal parts of [0, 1]

    @property
    def expected_error(self) -> float | None:
        """Mean of |score - share| over the predictions (ECE; Guo et al., ICML 2017); None without any."""
        if len(self.count) == 0:
            return None
        return float(np.average(np.abs(self.score - self.true_share), weights=self.count))


def calibration(scores: np.ndarray, true_positive: np.ndarray) -> Calibration:
    """How often predictions of a score are right; scores [N] in [0, 1], true_positive [N] bool."""
    bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)
    used = np.flatnonzero(count)
    count = count[used]
    score = np.bincount(bins, scores, NUM_BINS)[used] / count
    true_share = np.bincount(bins, true_positive, NUM_BINS)[used] / count
    return Calibration(score, true_share, count, used)
