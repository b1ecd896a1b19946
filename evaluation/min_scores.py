"""From which score on lines are drawn or written: one score for all classes, or for each class that of its best F1."""

import argparse
import os
from collections.abc import Sequence

import numpy as np

from evaluation.chamfer_ap import ClassHits, best_f1
from evaluation.json_files import read_json, shown
from utils.errors import UserError
from utils.frame import CLASSES

FALLBACK_SCORE = 0.3  # of a class without any hit, for which no score is best


def add_score_arguments(parser: argparse.ArgumentParser, default: float, hint: str = "") -> None:
    """The two ways to say it; for min_scores_asked_for."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--score-threshold", type=float, default=default,
        help=f"leave out lines that score lower (default: {default:g}{hint})",
    )  # fmt: skip
    either.add_argument(
        "--best-f1", metavar="FILE",
        help="or, for each class, those below the score of its best F1 (at the distance named there) in FILE, from "
        "tools/evaluate.py --json",
    )  # fmt: skip


def min_scores_asked_for(args: argparse.Namespace) -> np.ndarray:
    """The lowest score of each class that is kept, [C]. Raises UserError for what is no score, or a file without."""
    if args.best_f1 is not None:
        return read_min_scores(args.best_f1)
    if not 0.0 <= args.score_threshold <= 1.0:
        raise UserError(f"--score-threshold {args.score_threshold}: scores are 0 to 1; choose one of these")
    return np.full(len(CLASSES), args.score_threshold)


def min_scores_of(hits: Sequence[ClassHits], thresholds: Sequence[float]) -> np.ndarray:
    """For each class the score at which its F1 is best, as best_f1 judges it, [C]."""
    best = [best_f1(of_class, thresholds) for of_class in hits]
    return np.array([FALLBACK_SCORE if found is None else found["score"] for found in best])


def read_min_scores(path: str | os.PathLike) -> np.ndarray:
    """The same from an evaluation's file, [C]."""
    content = read_json(path)
    found = []
    for name in CLASSES:
        value = content
        for key in ("details", name, "best_f1"):
            if not isinstance(value, dict) or key not in value:
                raise UserError(f"{path}: no best F1 of {name}; give a file of tools/evaluate.py --json")
            value = value[key]
        score = FALLBACK_SCORE if value is None else value.get("score") if isinstance(value, dict) else None
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0.0 <= score <= 1.0:
            raise UserError(f"{path}: {name}'s best F1 at a score of {shown(score)}, expected 0 to 1; make it again")
        found.append(score)
    return np.array(found)
