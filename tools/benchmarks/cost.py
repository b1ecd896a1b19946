"""What a training costs on paper: FLOP of a sample, GPU-hours at a share of a card's rate, gradient traffic of ranks.

The FLOP are counted operator by operator on fake tensors; hours and bandwidths are modelled from them, not measured.
"""

import argparse
from dataclasses import replace

import torch

from models.config import ModelConfig
from models.detector import build_detector
from tools.benchmarks.common import SAMPLES
from tools.benchmarks.full_model import add_model_arguments, config_from
from tools.benchmarks.step import model_flop
from utils.errors import UserError
from utils.parameter_table import parameter_rows

# Dense half-precision tensor rates in FLOP/s, from NVIDIA's data sheets of the SXM cards.
CARDS = {"A100": 312e12, "H100": 989e12}
GRADIENT_BYTES = 4  # a float32 for each trained value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=1, help="samples of a rank in a step (default: %(default)s)")
    parser.add_argument("--mfu", type=float, default=0.5, help="share of a card's rate that is reached (default: 0.5)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])


def run(args: argparse.Namespace) -> dict:
    """Count, model and print; returns the figures."""
    if min(args.epochs, args.batch_size, *args.ranks) < 1 or not 0 < args.mfu <= 1:
        raise UserError(f"--epochs {args.epochs} --batch-size {args.batch_size} --mfu {args.mfu}: expected at least 1, "
                        "1, and more than 0 up to 1; --ranks at least 1")  # fmt: skip
    config = config_from(args)
    flop, again = (count / args.batch_size for count in step_flop(config, args.batch_size))
    rows = parameter_rows(build_detector(config, torch.device("meta"), torch.float16))
    gradient_gb = GRADIENT_BYTES * sum(row.trained for row in rows) / 1e9
    result = {"tflop_a_sample": flop / 1e12, "tflop_with_checkpointing": again / 1e12, "gradient_gb": gradient_gb,
              "hours": {}, "traffic": {}}  # fmt: skip
    print(f"{flop / 1e12:.1f} TFLOP a training sample, {again / 1e12:.1f} with gradient checkpointing; gradients of "
          f"{gradient_gb:.3f} GB")
    for card, rate in CARDS.items():
        for split, count in SAMPLES.items():
            hours = [args.epochs * count * each / (rate * args.mfu) / 3600 for each in (flop, again)]
            result["hours"][f"{card}, {split}"] = hours
            print(f"{args.epochs} epochs of {split} on {card} at {args.mfu:.0%} of {rate / 1e12:.0f} TFLOP/s: "
                  f"{hours[0]:.1f} GPU-hours, {hours[1]:.1f} with gradient checkpointing (modelled)")
        seconds = flop * args.batch_size / (rate * args.mfu)
        for ranks in args.ranks:
            traffic = ring_traffic(gradient_gb, ranks)
            result["traffic"][f"{card}, {ranks}"] = {"gb_a_step": traffic, "gb_per_s": traffic / seconds}
            print(f"{ranks} ranks of {card}: each sends and receives {traffic:.2f} GB a step of {seconds:.2f} s, "
                  f"{traffic / seconds:.2f} GB/s to hide it behind the step (modelled)")
    return result


def step_flop(config: ModelConfig, batch_size: int) -> tuple[int, int]:
    """model_flop, and with the forward pass of the LLM's layers once more, which gradient checkpointing adds."""
    whole = model_flop(config, batch_size)
    no_llm = replace(config, llm_path="none", lora_rank=0, llm_quantization="none", llm_layers=0)
    without = model_flop(no_llm, batch_size)
    return whole, whole + (whole - without) // 2  # in frozen layers backward takes as much as forward


def ring_traffic(gigabytes: float, ranks: int) -> float:
    """What each rank sends in a ring all-reduce (Patarasuk and Yuan 2009): 2 (N - 1) / N of the data."""
    return 2 * (ranks - 1) / ranks * gigabytes
