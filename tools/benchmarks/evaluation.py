"""Chamfer AP: ms a sample on one thread, beside a plain implementation, and a whole split from files.

The yardstick does what the published evaluators do, the usual way: Shapely's buffers for the candidate test and a
distance matrix for each pair, one after the other. Unlike theirs it does so once, not for every threshold. The limit
is SciPy's distance matrices of the pairs that may match, and nothing else. From
files: tools/evaluate.py as a user starts it, reading included, with the memory of all its processes together.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import shapely
from scipy.spatial.distance import cdist

from data.polylines import resample_lines
from evaluation import chamfer
from evaluation.chamfer_ap import PROTOCOLS, THRESHOLDS, SampleMatches, match_sample, summarize
from evaluation.formats import read_predictions, write_maptr_ground_truth, write_maptr_predictions
from evaluation.vectors import Vectors
from tools.benchmarks.common import make_again, recorded_calls, spread, timed
from tools.benchmarks.process_tree import run_and_watch
from utils.errors import UserError
from utils.frame import CLASSES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=6019, help="size of the made-up split (default: val's)")
    parser.add_argument("--predictions", type=int, default=50, help="a sample")
    parser.add_argument("--instances", type=int, default=9, help="ground-truth lines a sample")
    parser.add_argument("--timed-samples", type=int, default=200, help="samples timed one by one, on one thread")
    parser.add_argument("--yardstick-samples", type=int, default=10, help="of these, by the plain implementation too")
    parser.add_argument("--num-workers", type=int, default=2, help="processes for the whole split")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict:
    """Measure and print; returns the figures by protocol, times in milliseconds unless the name says otherwise."""
    counts = (args.samples, args.predictions, args.instances, args.timed_samples, args.num_workers)
    if min(counts) < 1 or not 1 <= args.yardstick_samples <= args.timed_samples <= args.samples:
        raise UserError(
            f"--samples {args.samples} --timed-samples {args.timed_samples} --yardstick-samples "
            f"{args.yardstick_samples}: all counts are at least 1, and each of these at most the one before"
        )
    rng = np.random.default_rng(args.seed)
    truth = {f"{index:06d}": made_up_truth(rng, args.instances) for index in range(args.samples)}
    predictions = {token: made_up_predictions(rng, vectors, args.predictions) for token, vectors in truth.items()}
    result = {}
    for protocol in PROTOCOLS:
        tokens = list(truth)[: args.timed_samples]
        match_sample(predictions[tokens[0]], truth[tokens[0]], protocol)  # the libraries warm up
        timings, limits = [], []
        for token in tokens:
            timings.append(timed(match_sample, predictions[token], truth[token], protocol))
            with recorded_calls(chamfer, ["cdist"]) as matrices:
                match_sample(predictions[token], truth[token], protocol)
            limits.append(timed(make_again, matrices)[1])
        few = tokens[: args.yardstick_samples]
        plain = [timed(plain_match, predictions[token], truth[token], protocol) for token in few]
        check_equal([found for found, _ in timings], [found for found, _ in plain], protocol)
        found = result[protocol] = {
            "ms": spread([1e3 * each for _, each in timings]),
            "yardstick_ms": spread([1e3 * each for _, each in plain]),
            "limit_ms": spread([1e3 * each for each in limits]),
            "limit_ratio": spread([own / least for (_, own), least in zip(timings, limits, strict=True) if least]),
        }
        found["yardstick_ratio"] = found["yardstick_ms"]["median"] / found["ms"]["median"]
        print(
            f"{protocol}: {found['ms']['median']:.2f} ms a sample on one thread (90 % below {found['ms']['p90']:.2f}); "
            f"plain implementation {found['yardstick_ms']['median']:.0f} ms, {found['yardstick_ratio']:.1f} times as "
            f"long; its distance matrices alone {found['limit_ms']['median']:.2f} ms, of which it takes "
            f"{found['limit_ratio']['median']:.1f} times"
        )
    result["files"] = measure_files(predictions, truth, args.num_workers)
    return result


def measure_files(predictions: dict[str, Vectors], truth: dict[str, Vectors], num_workers: int) -> dict:
    """Print and return what tools/evaluate.py takes to score these from files of MapTR's format."""
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.json" for name in ("predictions", "ground_truth")}
        write_maptr_predictions(paths["predictions"], predictions, {"frame": "lidar"})
        write_maptr_ground_truth(paths["ground_truth"], truth)
        megabytes = paths["predictions"].stat().st_size / 1e6
        _, seconds = timed(read_predictions, paths["predictions"])
        result = {"megabytes": megabytes, "read_s": seconds}
        print(f"files: predictions of {megabytes:.0f} MB are read in {seconds:.1f} s")
        for protocol in PROTOCOLS:
            command = [sys.executable, "tools/evaluate.py", "--predictions", paths["predictions"], "--ground-truth",
                       paths["ground_truth"], "--protocol", protocol, "--num-workers", num_workers]  # fmt: skip
            seconds, memory = run_and_watch(command, root)
            result[protocol] = {"split_s": seconds, "peak_memory_gb": memory}
            print(
                f"tools/evaluate.py --protocol {protocol}: {len(truth)} samples, --num-workers {num_workers}, "
                f"{seconds:.1f} s, {memory:.2f} GB in all processes at most"
            )
    return result


def made_up_truth(rng: np.random.Generator, instances: int) -> Vectors:
    """Lines along the road for dividers and boundaries, rings across it for crossings, in metres."""
    labels = rng.integers(0, len(CLASSES), instances)
    lines = []
    for label in labels:
        if CLASSES[label] == "ped_crossing":
            width, depth = rng.uniform(6, 20), rng.uniform(2, 4)
            corners = np.array([[0, 0], [width, 0], [width, depth], [0, depth], [0, 0]], float)
            lines.append(corners + rng.uniform([-14, -29], [-5, 25]))
        else:
            y = np.linspace(-30, rng.uniform(0, 30), rng.integers(4, 20))
            lines.append(np.stack([rng.uniform(-14, 14) + rng.normal(0, 0.01) * y**2 / 10, y], axis=1))
    return Vectors(labels, lines)


def made_up_predictions(rng: np.random.Generator, truth: Vectors, count: int) -> Vectors:
    """Copies of the ground truth, 20 points each, shifted by about a metre; one in five is called another class.

    Most lie near a line of their class, as a detector's do, which is the expensive case.
    """
    source = rng.integers(0, len(truth), count)
    lines = resample_lines([truth.pts_m[index] for index in source], 20)
    lines = lines + rng.normal(0, 1.0, (count, 1, 2)) + rng.normal(0, 0.1, (count, 20, 2))
    other = rng.random(count) < 0.2
    labels = np.where(other, rng.integers(0, len(CLASSES), count), truth.labels[source])
    return Vectors(labels, list(lines), rng.random(count))


def plain_match(predictions: Vectors, ground_truth: Vectors, protocol: str) -> SampleMatches:
    """match_sample, one pair of lines after the other."""
    rules = PROTOCOLS[protocol]
    true_positive = np.zeros((len(predictions), len(THRESHOLDS)), bool)
    chamfer = np.full(len(predictions), np.inf)
    num_gt = np.array([int((ground_truth.labels == label).sum()) for label in range(len(CLASSES))])
    nearest = np.zeros(len(predictions), int)

    def resampled(vectors: Vectors) -> list[np.ndarray]:
        return [resample_lines([line], rules.num_points)[0] for line in vectors.pts_m]

    def widened(lines: list[np.ndarray]) -> list[shapely.Polygon]:
        strings = [shapely.LineString(line) for line in lines]
        return [string.buffer(rules.half_width, cap_style="flat", join_style="mitre") for string in strings]

    pred_lines, gt_lines = resampled(predictions), resampled(ground_truth)
    if rules.half_width is not None:
        pred_bands, gt_bands = widened(pred_lines), widened(gt_lines)
    for i, line in enumerate(pred_lines):
        for j, other in enumerate(gt_lines):
            if predictions.labels[i] != ground_truth.labels[j]:
                continue
            if rules.half_width is not None and not pred_bands[i].intersects(gt_bands[j]):
                continue
            pairs = cdist(line, other)
            distance = (pairs.min(axis=0).mean() + pairs.min(axis=1).mean()) / 2
            if distance < chamfer[i]:
                chamfer[i], nearest[i] = distance, j
    for column, threshold in enumerate(THRESHOLDS):
        taken = set()
        for i in np.argsort(-predictions.scores, kind="stable"):
            if chamfer[i] <= threshold and nearest[i] not in taken:
                taken.add(nearest[i])
                true_positive[i, column] = True
    return SampleMatches(predictions.labels, predictions.scores, true_positive, chamfer, num_gt)


def check_equal(found: list[SampleMatches], plain: list[SampleMatches], protocol: str) -> None:
    """Raise RuntimeError unless the samples that both have measured give the same APs."""
    ours, yardstick = (
        summarize({str(index): sample for index, sample in enumerate(samples[: len(plain)])}, protocol)
        for samples in (found, plain)
    )
    for name in CLASSES:
        if ours[name] != yardstick[name]:
            raise RuntimeError(f"{protocol}, {name}: {ours[name]}, the plain implementation has {yardstick[name]}")
