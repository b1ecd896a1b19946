#!/usr/bin/env python3
"""Chamfer AP of a checkpoint on a split, or of a predictions file against a ground-truth file.

Examples:
  python tools/evaluate.py --checkpoint outputs/<run>/best_model.pth --dataroot D --gt-cache F.safetensors
  python tools/evaluate.py --predictions nuscmap_results.json --ground-truth nuscenes_map_anns_val.json
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.utils.data import DataLoader  # noqa: E402

from data.dataset import MapDetectionDataset, collate  # noqa: E402
from data.gt_cache import GTCache  # noqa: E402
from evaluation.chamfer_ap import PROTOCOLS, THRESHOLDS, evaluate, format_table, thresholds_for  # noqa: E402
from evaluation.formats import read_ground_truth, read_predictions, write_maptr_predictions  # noqa: E402
from evaluation.inference import ground_truth_of, load_detector, predict  # noqa: E402
from evaluation.vectors import Vectors  # noqa: E402
from utils.device import default_device  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import default_dataroot, replacing  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a .pth file of train_map_detection.py")
    parser.add_argument("--gt-cache", help="the split, made by tools/generate_gt_cache.py")
    parser.add_argument("--dataroot", default=default_dataroot(), help="folder with the images (default: %(default)s)")
    parser.add_argument("--llm-path", help="where the checkpoint's LLM lies, if not where it was in training")
    parser.add_argument("--predictions", help="MapTR's or StreamMapNet's predictions, instead of a checkpoint")
    parser.add_argument("--ground-truth", help="MapTR's ground truth, beside --predictions")
    parser.add_argument("--protocol", default="maptr", choices=PROTOCOLS)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-workers", type=int, default=2)
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
    args: argparse.Namespace,
) -> tuple[dict[str, Vectors], dict[str, Vectors], tuple[float, ...]]:
    """Predictions of the checkpoint and ground truth of the cache by sample token, and the range's thresholds."""
    device = default_device()
    model, config = load_detector(args.checkpoint, device, args.llm_path)
    cache = GTCache.open(args.gt_cache)
    cache.require(pc_range=config.pc_range)
    cache.verify()
    dataset = MapDetectionDataset(cache, args.dataroot, config.image_size, config.crop_top, config.num_points)
    loader = DataLoader(dataset, args.batch_size, num_workers=args.num_workers, collate_fn=collate)
    predictions, _ = predict(model, loader, device, None, config.pc_range)
    return predictions, ground_truth_of(cache), thresholds_for(config.pc_range)


def main() -> None:
    args = parse_args()
    if args.checkpoint:
        predictions, ground_truth, thresholds = predict_checkpoint(args)
    else:
        predictions, ground_truth = read_predictions(args.predictions), read_ground_truth(args.ground_truth)
        thresholds = THRESHOLDS
    missing = len(ground_truth.keys() - predictions.keys())
    if missing:
        print(f"warning: {missing} of {len(ground_truth)} samples have no entry in the predictions and count as empty")
    result = evaluate(predictions, ground_truth, args.protocol, thresholds)
    print(format_table(result))
    if args.save_predictions:
        write_maptr_predictions(args.save_predictions, predictions, {"use_camera": True})
    if args.json:
        with replacing(args.json) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    run_cli(main)
