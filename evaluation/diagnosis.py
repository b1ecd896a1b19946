"""What a detector's predictions say about it beside its score: use of its queries, calibration, gain of each head."""

# I instances (queries), N predictions

from collections.abc import Iterable, Sequence

import numpy as np

from evaluation.calibration import NUM_BINS, calibration
from evaluation.chamfer_ap import SampleMatches
from utils.frame import CLASSES

NEAR_M = 1.5  # metres of Chamfer distance within which a prediction is near a line
NEAR_SCORE = 0.3  # above which a prediction is one that somebody would draw
CALIBRATION_M = 1.0  # metres within which a prediction is true; a threshold of either range


def near_counts(matches: Iterable[SampleMatches]) -> np.ndarray:
    """How often each query [I] came within NEAR_M of a line of its class with a score above NEAR_SCORE.

    The samples hold every query, in their order, as outputs_to_vectors leaves them.
    """
    near = [(sample.chamfer <= NEAR_M) & (sample.scores > NEAR_SCORE) for sample in matches]
    return np.sum(near, axis=0)


def query_use(match_counts: np.ndarray, near: np.ndarray) -> dict:
    """How many queries do any work over a split; a query that is never matched is dead.

    match_counts [I]: how often each was the Hungarian match of a ground-truth line; near [I]: see near_counts. The
    effective number is the exponential of the entropy of the matches: I when all are matched alike often, 1 when one
    takes every line, 0 without any match.
    """
    counts = np.asarray(match_counts, np.float64)
    share = counts[counts > 0] / max(counts.sum(), 1.0)
    return {
        "num_queries": len(counts),
        "ever_matched": float((counts > 0).mean()),
        "never_matched": int((counts == 0).sum()),
        "effective_number": float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0,
        "ever_near": float((np.asarray(near) > 0).mean()),
        "match_counts": [int(count) for count in counts],
        "near_counts": [int(count) for count in near],
    }


def reliability(scores: np.ndarray, correct: np.ndarray) -> dict:
    """Reliability table and expected calibration error; scores [N] in [0, 1], correct [N] bool.

    Bins own their lower edge, the last both; an empty one has neither mean score nor precision.
    """
    found = calibration(scores, correct)
    bins = [
        {"from": low / NUM_BINS, "to": (low + 1) / NUM_BINS, "count": 0, "mean_score": None, "precision": None}
        for low in range(NUM_BINS)
    ]
    for place, count, score, share in zip(found.bin, found.count, found.score, found.true_share, strict=True):
        bins[place] |= {"count": int(count), "mean_score": float(score), "precision": float(share)}
    return {"bins": bins, "expected_calibration_error": found.expected_error}


def reliability_of(matches: Iterable[SampleMatches], thresholds: Sequence[float]) -> dict:
    """reliability of all predictions of a split; true is what average precision counts at CALIBRATION_M.

    thresholds: those of the matches, in metres, CALIBRATION_M among them.
    """
    column = list(thresholds).index(CALIBRATION_M)
    samples = list(matches)
    scores = np.concatenate([np.zeros(0), *(sample.scores for sample in samples)])
    correct = np.concatenate([np.zeros(0, bool), *(sample.true_positive[:, column] for sample in samples)])
    return reliability(scores, correct)


def score_row(name: str, result: dict, compared_with: float | None = None) -> dict:
    """mAP and AP of every class from a result of summarize; gain: mAP above another one. What is no number is None."""
    found = None if np.isnan(result["mAP"]) else result["mAP"]
    gain = None if found is None or compared_with is None else found - compared_with
    return {"name": name, "mAP": found, "gain": gain} | {label: result[label]["AP"] for label in CLASSES}


def head_rows(names: Sequence[str], results: Sequence[dict]) -> list[dict]:
    """A row a head, first to last; gain: above the head before."""
    rows: list[dict] = []
    for name, result in zip(names, results, strict=True):
        rows.append(score_row(name, result, rows[-1]["mAP"] if rows else None))
    return rows
