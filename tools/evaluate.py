#!/usr/bin/env python3
"""Chamfer AP of a checkpoint on a split, or of a predictions file against a ground-truth file.

Examples:
  python tools/evaluate.py --checkpoint outputs/<run>/best_model.pth --dataroot D --gt-cache F.safetensors
  python tools/evaluate.py --predictions nuscmap_results.json --ground-truth nuscenes_map_anns_val.json
  python tools/evaluate.py --predictions submission_vector.json --ground-truth F.safetensors --protocol streammapnet
  torchrun --nproc-per-node 4 tools/evaluate.py --checkpoint C --gt-cache F.safetensors
"""

import argparse
import math
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.gt_cache import GTCache, is_cache_file, range_name  # noqa: E402
from evaluation.chamfer_ap import (  # noqa: E402
    PROTOCOLS,
    check_tokens,
    format_table,
    match_samples,
    summarize,
    thresholds_for,
)
from evaluation.flags import add_loader_arguments, add_weight_arguments, check_loader_arguments  # noqa: E402
from evaluation.formats import (  # noqa: E402
    Predictions,
    read_ground_truth,
    read_predictions,
    write_maptr_predictions,
)
from evaluation.frames import to_lidar  # noqa: E402
from evaluation.ranges import lies_in, require_range, share_outside, smallest_range  # noqa: E402
from evaluation.vectors import Vectors, ground_truth_of  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import default_dataroot, require_writable, write_json  # noqa: E402
from utils.frame import PC_RANGES  # noqa: E402

LONGEST_WAIT_S = 7 * 86_400.0  # of a rank that is done for the others; torchrun ends it when one of them dies
MIN_SHARE = 500  # samples a process: starting one takes as long as matching a few hundred


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--checkpoint", help="a .pth file of train_map_detection.py")
    parser.add_argument("--gt-cache", help="the split, made by tools/generate_gt_cache.py")
    parser.add_argument("--dataroot", default=default_dataroot(), help="folder with the images (default: %(default)s)")
    add_weight_arguments(parser)
    parser.add_argument("--predictions", help="MapTR's or StreamMapNet's predictions, instead of a checkpoint")
    parser.add_argument(
        "--ground-truth", help="beside --predictions: MapTR's file, or a GT cache, which also knows the ego frame"
    )
    parser.add_argument(
        "--pc-range", choices=PC_RANGES,
        help="length x width in metres, decides the thresholds (default: what a cache, or the predictions' own file, "
        "says, else 60x30)",
    )  # fmt: skip
    parser.add_argument("--protocol", default="maptr", choices=PROTOCOLS)
    add_loader_arguments(parser, "decode images and match lines")
    parser.add_argument("--json", help="write the result here too")
    parser.add_argument("--save-predictions", help="write the checkpoint's vectors here, in MapTR's format")
    args = parser.parse_args()
    if bool(args.checkpoint) == bool(args.predictions):
        raise UserError("--checkpoint or --predictions: give one of the two")
    check_loader_arguments(args)
    if args.save_predictions and args.predictions:
        raise UserError(f"--save-predictions {args.save_predictions}: --predictions {args.predictions} has them "
                        "already; leave it out, or give --checkpoint")
    beside = ("--gt-cache", args.gt_cache) if args.checkpoint else ("--ground-truth", args.ground_truth)
    if not beside[1]:
        raise UserError(f"{beside[0]}: missing, there is nothing to compare with; see --help")
    inputs = (args.checkpoint, args.gt_cache, args.predictions, args.ground_truth)
    require_writable(args.json, args.save_predictions, inputs=inputs)
    return args


def main() -> None:
    args = parse_args()
    if args.checkpoint:
        score_checkpoint(args)
    elif os.environ.get("RANK", "0") == "0":  # one process reads the files and deals them out, the others are done
        score_files(args)


def score_checkpoint(args: argparse.Namespace) -> None:
    """Predict the split, score it, and report; under torchrun each rank takes its share of the samples."""
    # Imported here: they load torch, which files and the processes that match lines do without.
    from evaluation.inference import predict_samples
    from utils.distributed import batches_of_rank, join_ranks, leave_ranks

    ranks = join_ranks(timeout_s=LONGEST_WAIT_S)
    cache = open_cache(args.gt_cache, args.pc_range)
    predictions, config, _ = predict_samples(
        args.checkpoint, cache, batches_of_rank(len(cache), args.batch_size, ranks), args.dataroot, args.num_workers,
        args.llm_path, args.qformer_pretrained, "evaluate",
    )  # fmt: skip
    every = ground_truth_of(cache)
    own = {token: every[token] for token in predictions}
    thresholds = thresholds_for(config.pc_range)
    processes = processes_for(len(own), 1 if ranks.world_size > 1 else args.num_workers)
    matches = ranks.merge(match_samples(predictions, own, args.protocol, thresholds, processes))
    if args.save_predictions:
        predictions = ranks.merge(predictions)
    if ranks.is_main:
        warn_of_other_style(args.gt_cache, cache, args.protocol)
        warn_of_no_truth(args.gt_cache, every)
        report(args, summarize(matches, args.protocol, thresholds), predictions, config.pc_range)
    leave_ranks(ranks)


def score_files(args: argparse.Namespace) -> None:
    """Score a predictions file and report."""
    predictions, ground_truth, pc_range = read_files(args)
    check_tokens(predictions, ground_truth)
    missing = len(ground_truth.keys() - predictions.keys())
    if missing:
        warn(f"{args.predictions}: {missing} of {len(ground_truth)} samples have no entry and count as empty")
    warn_of_no_truth(args.ground_truth, ground_truth)
    thresholds = thresholds_for(pc_range)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as many processes as torchrun was asked for
    processes = processes_for(len(ground_truth), max(args.num_workers, ranks_here))
    matches = match_samples(predictions, ground_truth, args.protocol, thresholds, processes)
    report(args, summarize(matches, args.protocol, thresholds), predictions, pc_range)


def processes_for(num_samples: int, at_most: int) -> int:
    """How many processes are worth starting to match so many samples."""
    return max(1, min(at_most, num_samples // MIN_SHARE))


def open_cache(path: str, pc_range: str | None) -> GTCache:
    """A whole cache, which has this range if one is asked for."""
    cache = GTCache.open(path)
    cache.verify()
    cache.require(pc_range=PC_RANGES[pc_range] if pc_range else None)
    return cache


def read_files(args: argparse.Namespace) -> tuple[dict[str, Vectors], dict[str, Vectors], tuple[float, ...]]:
    """Predictions and ground truth by sample token in one frame, and their range."""
    if Path(args.ground_truth).suffix == ".safetensors" or is_cache_file(args.ground_truth):
        cache = open_cache(args.ground_truth, args.pc_range)
        warn_of_other_style(args.ground_truth, cache, args.protocol)
        pc_range, ground_truth = tuple(cache.meta["pc_range"]), ground_truth_of(cache)
        found = read_predictions(args.predictions)
        require_range(args.predictions, found.pc_range, pc_range)
        for token, vectors in found.by_token.items():  # in place: a copy of a split is large
            found.by_token[token] = to_lidar(vectors, found.frame, cache[cache.index_of(token)])
    else:
        ground_truth, found = read_ground_truth(args.ground_truth), read_predictions(args.predictions)
        pc_range = PC_RANGES[args.pc_range] if args.pc_range else found.pc_range or PC_RANGES["60x30"]
        require_range(args.predictions, found.pc_range, pc_range)
        refuse_other_truth(args, ground_truth, found.frame, pc_range)
        if found.frame != "lidar":
            warn(
                f"{args.predictions}: a file of its kind is in the {found.frame} frame, {args.ground_truth} should be "
                "too; a GT cache as --ground-truth would know"
            )
    refuse_other_frame(args, found, ground_truth, pc_range)
    return found.by_token, ground_truth, pc_range


def refuse_other_truth(
    args: argparse.Namespace, ground_truth: dict[str, Vectors], frame: str, pc_range: tuple[float, ...]
) -> None:
    """Raise UserError when a ground-truth file is of a larger range; warn when it is of a smaller one.

    It is in the LiDAR frame, or in that of the predictions.
    """
    if frame == "global" or not any(map(len, ground_truth.values())):
        return
    name, fitting = range_name(pc_range), smallest_range(ground_truth, maybe_ego=frame == "ego")
    if not lies_in(ground_truth, pc_range, maybe_ego=frame == "ego"):
        fix = f"give --pc-range {fitting}" if fitting else "give ground truth in the LiDAR frame (x right, y forward)"
        raise UserError(
            f"{args.ground_truth}: {share_outside(ground_truth, pc_range):.0%} of the points lie outside {name} m, "
            f"expected ground truth of that range; {fix}"
        )
    if fitting != name:
        warn(f"{args.ground_truth}: all of it lies within {fitting} m, the thresholds are those of {name}")


def refuse_other_frame(
    args: argparse.Namespace, found: Predictions, ground_truth: dict[str, Vectors], pc_range: tuple[float, ...]
) -> None:
    """Raise UserError when predictions clearly lie in another frame or a larger range than the ground truth."""
    if not lies_in(ground_truth, pc_range):
        return
    name = range_name(pc_range)
    if not lies_in(found.by_token, pc_range):
        raise UserError(
            f"{args.predictions}: {share_outside(found.by_token, pc_range):.0%} of the points lie outside {name} m of "
            "the LiDAR frame (x right, y forward), where the ground truth lies; if they are in the ego frame, as "
            "StreamMapNet's, give a GT cache as --ground-truth, else predict for this range"
        )
    fitting = smallest_range(found.by_token)
    if found.pc_range is None and fitting != smallest_range(ground_truth) and any(map(len, found.by_token.values())):
        warn(f"{args.predictions}: all of it lies within {fitting} m, the ground truth fills {name}; another range?")


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def warn_of_other_style(path: str, cache: GTCache, protocol: str) -> None:
    style = cache.meta["gt_style"]
    if style != protocol:
        warn(f"{path}: ground truth of style {style}; scores published for --protocol {protocol} are of its own, made "
             f"with --gt-style {protocol}")


def warn_of_no_truth(path: str, ground_truth: dict[str, Vectors]) -> None:
    if not any(map(len, ground_truth.values())):
        warn(f"{path}: no ground truth in any of its {len(ground_truth)} samples, so there is nothing to find")


def report(
    args: argparse.Namespace, result: dict, predictions: dict[str, Vectors], pc_range: tuple[float, ...]
) -> None:
    """Print the table and write what was asked for; what is no number is null in JSON."""
    print(format_table(result))
    if args.save_predictions:
        meta = {"use_camera": True, "frame": "lidar", "pc_range": list(pc_range)}
        write_maptr_predictions(args.save_predictions, predictions, meta)
    if args.json:
        content = result | {"mAP": None if math.isnan(result["mAP"]) else result["mAP"]}
        write_json(args.json, content)


if __name__ == "__main__":
    run_cli(main)
