"""How a training step grows with batch, cameras, instances, points and image size, caches and scores with samples.

Each row changes one size and leaves the others; the exponent is the slope of log(seconds) over log(size): 1 is linear,
0 costs nothing.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.gt_cache import write_gt_cache
from evaluation.chamfer_ap import match_samples, summarize
from models.config import ModelConfig
from tools.benchmarks.common import copies_of, spread, timed
from tools.benchmarks.evaluation import made_up_predictions, made_up_truth
from tools.benchmarks.full_model import add_model_arguments, changed_config, config_from, made_up_batch
from tools.benchmarks.loader import bare_record
from tools.benchmarks.step import measure_step
from utils.device import PRECISIONS
from utils.errors import UserError
from utils.frame import CAMERAS, PC_RANGES

PREDICTIONS, INSTANCES = 50, 9  # a sample of the evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.set_defaults(preset="tiny")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--batch-size", type=int, default=2, help="where it is not what changes")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 4, 6])
    parser.add_argument("--instances", type=int, nargs="+", default=[12, 24, 48, 96])
    parser.add_argument("--points", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--image-scales", type=int, nargs="+", default=[1, 2, 3], help="times as wide and as high")
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 1000, 2000], help="of cache and evaluation")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)


def run(args: argparse.Namespace) -> dict:
    """Measure and print; returns for each size the seconds and the exponent."""
    sizes = (*args.batches, *args.cameras, *args.instances, *args.points, *args.image_scales, *args.samples)
    if min(*sizes, args.batch_size, args.steps) < 1 or args.warmup < 0 or max(args.cameras) > len(CAMERAS):
        raise UserError("sizes, --batch-size and --steps must be at least 1, --warmup 0, and --cameras at most "
                        f"{len(CAMERAS)}")
    config = config_from(args)
    for points in args.points:  # before the first minutes of work
        changed_config(config, num_points=points)

    def step(changed: ModelConfig, batch_size: int = args.batch_size, cameras: int = len(CAMERAS)) -> float:
        batch = with_cameras(made_up_batch(changed, batch_size), cameras)
        return measure_step(changed, batch, PRECISIONS[args.precision], args.steps, args.warmup)["seconds"]["median"]

    height, width = config.image_size
    works: dict[str, tuple[Sequence[int], Callable[[int], float]]] = {
        "batch": (args.batches, lambda size: step(config, batch_size=size)),
        "cameras": (args.cameras, lambda size: step(config, cameras=size)),
        "instances": (args.instances, lambda size: step(replace(config, num_instances=size))),
        "points": (args.points, lambda size: step(replace(config, num_points=size))),
        "image pixels": ([scale**2 for scale in args.image_scales], lambda size: step(
            replace(config, image_size=(round(height * size**0.5), round(width * size**0.5))))),
        "samples of a cache": (args.samples, cache_seconds),
        "samples of an evaluation": (args.samples, evaluation_seconds),
    }  # fmt: skip
    result = {}
    for name, (grown, measure) in works.items():
        seconds = [measure(size) for size in grown]
        result[name] = {"sizes": list(grown), "seconds": seconds, "exponent": exponent(grown, seconds)}
        cells = ", ".join(f"{size}: {taken:.3g} s" for size, taken in zip(grown, seconds, strict=True))
        print(f"{name}: {cells}; exponent {result[name]['exponent']:.2f}", flush=True)
    return result


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the straight line through log(seconds) over log(size); NaN for a single size."""
    if len(set(sizes)) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def with_cameras(batch: dict, count: int) -> dict:
    """The batch with its first cameras alone."""
    return batch | {name: batch[name][:, :count] for name in ("images", "lidar2img", "camera_ids")}


def cache_seconds(count: int) -> float:
    """To write a cache of so many samples of INSTANCES lines each."""
    rng = np.random.default_rng(0)
    truth = made_up_truth(rng, INSTANCES)
    with tempfile.TemporaryDirectory() as folder:
        record = bare_record([Path("camera.jpg")] * len(CAMERAS), [(1600, 900)] * len(CAMERAS))
        lines = [line.astype(np.float32) for line in truth.pts_m]
        records = copies_of([replace(record, labels=truth.labels, pts_m=lines)], count)
        meta = {"split": "train", "version": "v1.0-trainval", "pc_range": list(PC_RANGES["60x30"]), "gt_style": "maptr"}
        path = Path(folder) / "cache.safetensors"
        return spread([timed(write_gt_cache, path, records, meta)[1] for _ in range(3)])["median"]


def evaluation_seconds(count: int) -> float:
    """To score PREDICTIONS lines in each of so many samples, on one process."""
    rng = np.random.default_rng(0)
    truth = {f"{index:06d}": made_up_truth(rng, INSTANCES) for index in range(count)}
    predictions = {token: made_up_predictions(rng, vectors, PREDICTIONS) for token, vectors in truth.items()}
    return timed(lambda: summarize(match_samples(predictions, truth)))[1]
