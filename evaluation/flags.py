"""Command-line flags of every tool that takes a checkpoint; without torch, so that tools can do without it too."""

import argparse


def add_weight_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a checkpoint's frozen weights lie, if not where they were in training; for load_detector."""
    parser.add_argument("--llm-path", help="where the checkpoint's LLM lies, if not where it was in training")
    parser.add_argument("--qformer-pretrained", help="where its BLIP-2 weights lie, if not where they were in training")
