#!/usr/bin/env python3
"""Chamfer AP of a checkpoint on a split, or of a predictions file against a ground-truth file.

Examples:
  python tools/evaluate.py --checkpoint outputs/<run>/best_model.pth --dataroot D --gt-cache F.safetensors
  python tools/evaluate.py --predictions nuscmap_results.json --ground-truth nuscenes_map_anns_val.json
  python tools/evaluate.py --predictions submission_vector.json --ground-truth F.safetensors --protocol streammapnet
  torchrun --nproc-per-node 4 tools/evaluate.py --checkpoint C --gt-cache F.safetensors
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.utils.data import DataLoader  # noqa: E402

from data.dataset import collate  # noqa: E402
from data.gt_cache import GTCache, range_name  # noqa: E402
from evaluation.chamfer_ap import (  # noqa: E402
    PROTOCOLS,
    check_tokens,
    format_table,
    match_samples,
    summarize,
    thresholds_for,
)
from evaluation.flags import add_weight_arguments  # noqa: E402
from evaluation.formats import (  # noqa: E402
    read_ground_truth,
    read_predictions,
    write_maptr_predictions,
)
from evaluation.frames import share_outside, to_lidar  # noqa: E402
from evaluation.inference import (  # noqa: E402
    build_dataset,
    ground_truth_of,
    inference_dtype,
    load_detector,
    predict,
)
from evaluation.vectors import Vectors  # noqa: E402
from utils.device import default_device  # noqa: E402
from utils.distributed import Ranks, batches_of_rank, join_ranks, leave_ranks  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import default_dataroot, replacing  # noqa: E402
from utils.frame import PC_RANGES  # noqa: E402

# Predictions with more of their points outside the range than this are taken to be in another frame.
MAX_OUTSIDE = 0.05


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a .pth file of train_map_detection.py")
    parser.add_argument("--gt-cache", help="the split, made by tools/generate_gt_cache.py")
    parser.add_argument("--dataroot", default=default_dataroot(), help="folder with the images (default: %(default)s)")
    add_weight_arguments(parser)
    parser.add_argument("--predictions", help="MapTR's or StreamMapNet's predictions, instead of a checkpoint")
    parser.add_argument(
        "--ground-truth", help="beside --predictions: MapTR's file, or a GT cache, which also knows the ego frame"
    )
    parser.add_argument(
        "--pc-range", default="60x30", choices=PC_RANGES,
        help="of MapTR's files, length x width in metres; decides the thresholds (caches and checkpoints know theirs)",
    )  # fmt: skip
    parser.add_argument("--protocol", default="maptr", choices=PROTOCOLS)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-workers", type=int, default=2, help="processes that decode images and match lines")
    parser.add_argument("--json", help="write the result here too")
    parser.add_argument("--save-predictions", help="write the checkpoint's vectors here, in MapTR's format")
    args = parser.parse_args()
    if bool(args.checkpoint) == bool(args.predictions):
        raise UserError("--checkpoint or --predictions: give one of the two")
    if args.batch_size < 1 or args.num_workers < 0:
        raise UserError(f"--batch-size {args.batch_size} --num-workers {args.num_workers}: at least 1 and 0 are needed")
    beside = ("--gt-cache", args.gt_cache) if args.checkpoint else ("--ground-truth", args.ground_truth)
    if not beside[1]:
        raise UserError(f"{beside[0]}: missing, there is nothing to compare with; see --help")
    return args


def predict_checkpoint(
    args: argparse.Namespace, ranks: Ranks
) -> tuple[dict[str, Vectors], dict[str, Vectors], tuple[float, ...]]:
    """This rank's predictions of the checkpoint, their ground truth by sample token, and the range's thresholds."""
    device = default_device()
    model, config = load_detector(args.checkpoint, device, args.llm_path, args.qformer_pretrained)
    cache = GTCache.open(args.gt_cache)
    cache.require(pc_range=config.pc_range)
    cache.verify()
    dataset = build_dataset(config, cache, args.dataroot)
    batches = batches_of_rank(len(cache), args.batch_size, ranks)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=args.num_workers, collate_fn=collate)
    predictions, _ = predict(model, loader, device, inference_dtype(device), config.pc_range)
    ground_truth = ground_truth_of(cache)
    return predictions, {token: ground_truth[token] for token in predictions}, thresholds_for(config.pc_range)


def read_files(
    args: argparse.Namespace, ranks: Ranks
) -> tuple[dict[str, Vectors], dict[str, Vectors], tuple[float, ...]]:
    """Predictions and ground truth of this rank's samples in the LiDAR frame, and the range's thresholds."""
    predictions, frame = read_predictions(args.predictions)
    if Path(args.ground_truth).suffix == ".safetensors":
        cache = GTCache.open(args.ground_truth)
        cache.verify()
        pc_range, ground_truth = tuple(cache.meta["pc_range"]), ground_truth_of(cache)
        predictions = {
            token: to_lidar(vectors, frame, cache[cache.index_of(token)]) for token, vectors in predictions.items()
        }
    else:
        pc_range, ground_truth = PC_RANGES[args.pc_range], read_ground_truth(args.ground_truth)
        if frame != "lidar" and ranks.is_main:
            print(
                f"warning: {args.predictions}: a file of its kind is in the {frame} frame, {args.ground_truth} should "
                "be too; a GT cache as --ground-truth would know",
                file=sys.stderr,
            )
    refuse_other_frame(args, predictions, ground_truth, pc_range)
    check_tokens(predictions, ground_truth)
    missing = len(ground_truth.keys() - predictions.keys())
    if missing and ranks.is_main:
        print(
            f"warning: {args.predictions}: {missing} of {len(ground_truth)} samples have no entry and count as empty",
            file=sys.stderr,
        )
    tokens = list(ground_truth)[ranks.rank :: ranks.world_size]
    return (
        {token: predictions[token] for token in tokens if token in predictions},
        {token: ground_truth[token] for token in tokens},
        thresholds_for(pc_range),
    )


def refuse_other_frame(
    args: argparse.Namespace,
    predictions: dict[str, Vectors],
    ground_truth: dict[str, Vectors],
    pc_range: tuple[float, ...],
) -> None:
    """Raise UserError when the predictions clearly lie in another frame or range than the ground truth."""
    outside = share_outside(predictions, pc_range)
    if outside > MAX_OUTSIDE and share_outside(ground_truth, pc_range) <= MAX_OUTSIDE:
        name = range_name(pc_range)
        raise UserError(
            f"{args.predictions}: {outside:.0%} of the points lie outside {name} m of the LiDAR frame (x right, y "
            "forward), where the ground truth lies; if they are in the ego frame, as StreamMapNet's, give a GT cache "
            "as --ground-truth, else predict for this range"
        )


def main() -> None:
    args = parse_args()
    ranks = join_ranks()
    find = predict_checkpoint if args.checkpoint else read_files
    predictions, ground_truth, thresholds = find(args, ranks)
    # Starting a process takes as long as matching a few hundred samples.
    processes = 1 if ranks.world_size > 1 else max(1, min(args.num_workers, len(ground_truth) // 500))
    matches = ranks.merge(match_samples(predictions, ground_truth, args.protocol, thresholds, processes))
    if args.save_predictions:
        predictions = ranks.merge(predictions)
    if ranks.is_main:
        report(args, summarize(matches, args.protocol, thresholds), predictions)
    leave_ranks(ranks)


def report(args: argparse.Namespace, result: dict, predictions: dict[str, Vectors]) -> None:
    """Print the table and write what was asked for."""
    print(format_table(result))
    if args.save_predictions:
        write_maptr_predictions(args.save_predictions, predictions, {"use_camera": True, "frame": "lidar"})
    if args.json:
        with replacing(args.json) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    run_cli(main)
