"""Command-line flags of every tool that takes a checkpoint; without torch, so that tools can do without it too."""

import argparse

from utils.errors import UserError


def add_weight_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a checkpoint's frozen weights lie, if not where they were in training; for load_detector."""
    parser.add_argument("--llm-path", help="where the checkpoint's LLM lies, if not where it was in training")
    parser.add_argument("--qformer-pretrained", help="where its BLIP-2 weights lie, if not where they were in training")


def add_loader_arguments(parser: argparse.ArgumentParser, work: str = "decode images") -> None:
    """How samples reach the checkpoint's network; work: what the processes do."""
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-workers", type=int, default=2, help=f"processes that {work}")


def check_loader_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for values of add_loader_arguments that cannot be meant."""
    if args.batch_size < 1 or args.num_workers < 0:
        raise UserError(f"--batch-size {args.batch_size} --num-workers {args.num_workers}: at least 1 and 0 are needed")
