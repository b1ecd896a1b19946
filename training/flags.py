"""The flags of train_map_detection.py."""

import argparse
import importlib.util

import torch

from data.gt_cache import GT_STYLES
from data.noisy_lines import MOST_COPIES, NUM_COPIES
from data.splits import SPLITS
from data.transforms import MOST_ROTATION_DEG, MOST_ZOOM
from models.criterion import SEGMENTATION_WEIGHT
from models.flags import add_model_arguments
from utils.command_line import documented_parser
from utils.device import PRECISIONS, default_precision
from utils.errors import UserError
from utils.files import default_dataroot

_LONGEST_TIMEOUT = 30 * 86_400.0  # seconds; the system's clocks do not take any number
_AT_LEAST_ONE = ("epochs", "batch_size", "accumulation_steps", "log_interval", "save_interval", "eval_interval")
_NOT_NEGATIVE = ("lr_qformer", "lr_queries", "lr_decoder", "lr_lora", "weight_decay", "warmup_steps",
                 "segmentation_weight", "num_workers", "save_every_steps", "keep_last")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it stands, and defaults behind the help where there are any that it does not name itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False or action.default == "" or "default:" in action.help:
            return action.help
        return super()._get_help_string(action)


def build_parser(description: str = "") -> argparse.ArgumentParser:
    """The parser of all flags, in groups."""
    parser = documented_parser(description, _HelpFormatter)
    _add_data_arguments(parser)
    add_model_arguments(parser)
    _add_training_arguments(parser)
    _add_output_arguments(parser)
    return parser


def parse_args(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of a run. Raises UserError for values that cannot be meant."""
    args = build_parser(description).parse_args(argv)
    _check(args)
    return args


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--dataroot", default=default_dataroot(), help="folder with samples/, maps/ and v1.0-*/")
    data.add_argument("--version", default="v1.0-trainval", help="nuScenes version the caches were made from")
    data.add_argument("--gt-cache-train", help="cache of the training split; made by tools/generate_gt_cache.py")
    data.add_argument("--gt-cache-val", help="cache of the validation split")
    data.add_argument("--train-split", default="train", choices=SPLITS, help="of nuScenes, or geographic_*")
    data.add_argument("--val-split", default="val", choices=SPLITS, help="must share no scene with --train-split")
    data.add_argument("--gt-style", default="maptr", choices=GT_STYLES, help="whose ground-truth vectors")
    data.add_argument("--num-workers", type=int, default=4, help="processes of each rank that decode images")
    data.add_argument("--mirror", type=float, default=0.0, help="probability of a left-right mirrored sample")
    data.add_argument("--noisy-copies", type=int, default=NUM_COPIES,
                      help="of every ground-truth line, which the decoder learns to put back; 0: none")
    data.add_argument("--rotation", type=float, default=0.0,
                      help="turn the car's frame by up to so many degrees either way")
    data.add_argument("--zoom", type=float, default=0.0,
                      help="shrink each image's window by up to this share, and move it within what that leaves")
    data.add_argument("--photometric", type=float, default=0.0,
                      help="brightness, contrast and saturation vary by up to this share")


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("training")
    run.add_argument("--epochs", type=int, default=24, help="passes over the training split")
    run.add_argument("--batch-size", type=int, default=4, help="samples that go through the network at once, per rank")
    run.add_argument("--accumulation-steps", type=int, default=1, help="batches of each rank in one optimizer step")
    run.add_argument("--lr-qformer", type=float, default=1e-5, help="largest learning rate of the Q-Former")
    run.add_argument("--lr-queries", type=float, default=1e-4,
                     help="of the map queries and what else is new on the way into the LLM")
    run.add_argument("--lr-decoder", type=float, default=1e-4, help="of the vector decoder and what it samples")
    run.add_argument("--lr-lora", type=float, default=1e-4, help="of --lora-rank and --unfreeze-llm")
    run.add_argument("--weight-decay", type=float, default=0.01, help="of AdamW")
    run.add_argument("--warmup-steps", type=int, default=500, help="optimizer steps of linear warm-up")
    run.add_argument("--grad-clip", type=float, default=0.1, help="largest norm of the whole gradient")
    run.add_argument("--segmentation-weight", type=float, default=SEGMENTATION_WEIGHT,
                     help="of each of the three auxiliary segmentation losses")
    run.add_argument("--ema-decay", type=float, default=0.0,
                     help="validate with an exponential average of the weights; 0: none, usual is 0.9998")
    run.add_argument("--precision", choices=PRECISIONS, help="default: fp16 on a GPU, fp32 on a CPU")
    run.add_argument("--fp16", action="store_true", help="the same as --precision fp16")
    run.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="auto: a GPU if there is one")
    run.add_argument("--shard-llm", action="store_true", help="spread the frozen LLM's weights over the ranks")
    run.add_argument("--compile", action="store_true",
                     help="torch.compile for the layers of the LLM and of a frozen tower; the first steps take longer")
    run.add_argument("--rank-timeout", type=float, default=600.0,
                     help="seconds after which a rank, or a loader's worker, that does not answer ends the run")
    run.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("output")
    out.add_argument("--output-dir", help="default: outputs/map_detection_stage2_YYYYMMDD_HHMMSS")
    out.add_argument("--log-interval", type=int, default=50, help="optimizer steps between log lines")
    out.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard, which must be installed")
    out.add_argument("--save-interval", type=int, default=1, help="epochs between checkpoints")
    out.add_argument("--save-every-steps", type=int, default=0, help="also save within epochs; 0: not")
    out.add_argument("--keep-last", type=int, default=3, help="checkpoints to keep beside the best; 0: all")
    out.add_argument("--eval-interval", type=int, default=1, help="epochs between validations")
    out.add_argument("--eval-untrained", action="store_true", help="validate once before the first step, to compare")
    out.add_argument("--resume", help="checkpoint_epoch_*.pth to go on from in its own folder, or auto: the newest "
                     "whole one in --output-dir, if there is any")
    out.add_argument("--allow-changed", default="", metavar="NAME,...",
                     help="settings that may differ from the checkpoint's although they change the result")
    out.add_argument("--reshuffle", action="store_true",
                     help="go on with another number of samples a step: an interrupted epoch begins again")


def _check(args: argparse.Namespace) -> None:
    """Refuse values that cannot be meant, and settle the ones that depend on others."""
    for names, least in ((_AT_LEAST_ONE, 1), (_NOT_NEGATIVE, 0)):
        for name in names:
            if not least <= getattr(args, name) < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least {least}")
    for name, most in (("mirror", 1), ("photometric", 1), ("rotation", MOST_ROTATION_DEG), ("zoom", MOST_ZOOM),
                       ("noisy_copies", MOST_COPIES)):  # fmt: skip
        if not 0 <= getattr(args, name) <= most:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be between 0 and {most}")
    if not 0 <= args.ema_decay < 1:
        raise UserError(f"--ema-decay {args.ema_decay}: must be at least 0 and below 1")
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed {args.seed}: must be between 0 and {2**31 - 1}")
    if not 0 < args.grad_clip < float("inf"):
        raise UserError(f"--grad-clip {args.grad_clip}: must be positive")
    if not 0 < args.rank_timeout <= _LONGEST_TIMEOUT:
        raise UserError(f"--rank-timeout {args.rank_timeout:g}: must be positive and at most {_LONGEST_TIMEOUT:g}")
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: is not installed; pip install tensorboard, or leave the flag out")
    if args.resume == "auto" and not args.output_dir:
        raise UserError("--resume auto: looks in --output-dir, which is missing; give the run's folder")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; mend the driver, or take --device cpu")
    if args.fp16:
        if args.precision not in (None, "fp16"):
            raise UserError(f"--fp16 --precision {args.precision}: give one of the two")
        args.precision = "fp16"
    if args.precision is None:
        args.precision = default_precision(torch.cuda.is_available() and args.device != "cpu")
