#!/usr/bin/env python3
"""The weights of a checkpoint alone, to give away: a third of its size, and no word of where its data lay.

evaluate.py, predict.py and the other tools read the file like any checkpoint; a training cannot go on from it.

Examples:
  python tools/export_checkpoint.py --checkpoint outputs/<run>/best_model.pth --output map_detector.pth
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command_line import documented_parser  # noqa: E402
from utils.errors import run_cli  # noqa: E402
from utils.files import require_writable  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a .pth file of train_map_detection.py")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    args = parser.parse_args()
    require_writable(args.output, inputs=(args.checkpoint,))
    return args


def main() -> None:
    args = parse_args()
    from utils.checkpoint import load_checkpoint, save_checkpoint, weights_alone  # after the flags: it loads torch

    exported = weights_alone(load_checkpoint(args.checkpoint))
    save_checkpoint(exported, args.output)
    count = sum(tensor.numel() for tensor in exported["model_state_dict"].values())
    print(f"{args.output}: {count:,} trained values, {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_cli(main)
