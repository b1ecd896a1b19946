"""A checkpoint at full size: its bytes, and the seconds to save it, to load it, and what of both the digest takes.

Weights and Adam states are random and of the sizes that the model's trained parameters have. Saving ends when the
system says that the file is on the disk; before loading, the system is asked to forget what it holds of it in memory.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.detector import build_detector
from tools.benchmarks.common import spread, timed
from tools.benchmarks.full_model import add_model_arguments, config_from
from utils.checkpoint import CHECKPOINT_KEYS, checkpoint_digest, load_checkpoint, save_checkpoint
from utils.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on the disk to measure (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)


def run(args: argparse.Namespace) -> dict:
    """Measure and print; returns sizes in GB (10^9 bytes) and seconds."""
    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: must be at least 1")
    if not Path(args.folder).is_dir():
        raise UserError(f"--folder {args.folder}: no such folder; give one on the disk to measure")
    checkpoint = made_up_checkpoint(config_from(args))
    seconds: dict[str, list[float]] = {"digest": [], "save": [], "load": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "checkpoint_epoch_1.pth"
        for _ in range(args.repeats):
            seconds["digest"].append(timed(checkpoint_digest, checkpoint)[1])
            seconds["save"].append(timed(save_checkpoint, checkpoint, path)[1])
            forget(path)
            seconds["load"].append(timed(load_checkpoint, path)[1])
        size = path.stat().st_size
    weights = sum(map(num_bytes, checkpoint["model_state_dict"].values()))
    states = checkpoint["optimizer_state_dict"]["state"].values()
    optimizer = sum(num_bytes(tensor) for state in states for tensor in state.values())
    found = {"file_gb": size / 1e9, "weights_gb": weights / 1e9, "optimizer_gb": optimizer / 1e9}
    found |= {f"{name}_s": spread(values) for name, values in seconds.items()}
    digest, save, load = (found[f"{name}_s"]["median"] for name in seconds)
    print(
        f"{found['file_gb']:.3f} GB ({found['weights_gb']:.3f} weights, {found['optimizer_gb']:.3f} optimizer): "
        f"saved in {save:.2f} s ({size / 1e6 / save:.0f} MB/s), loaded in {load:.2f} s ({size / 1e6 / load:.0f} MB/s); "
        f"the digest takes {digest:.2f} s of each, {digest / save:.0%} and {digest / load:.0%}"
    )
    return found


def made_up_checkpoint(config: ModelConfig) -> dict:
    """Random weights of the sizes of the model's trained parameters, and the state of AdamW after one step on them."""
    model = build_detector(config, torch.device("meta"), torch.float16)
    weights = {name: nn.Parameter(torch.randn(p.shape)) for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(weights.values())
    for parameter in weights.values():
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    return dict.fromkeys(CHECKPOINT_KEYS, 0) | {
        "model_state_dict": {name: parameter.detach() for name, parameter in weights.items()},
        "optimizer_state_dict": optimizer.state_dict(),
        "frozen_identity": {},
    }


def num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def forget(path: Path) -> None:
    """Ask the system to drop its copy of the file in memory, where it takes such wishes."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
