#!/usr/bin/env python3
"""Preflight on your machine: does what you are about to train work at all?

Five checks: model, parameter groups, forward, backward, data. Exit code 1 if any fails, 2 for a wrong flag.

Examples:
  python test_training_setup.py --preset tiny                                   (made-up data only)
  python test_training_setup.py --dataroot data/nuscenes --gt-cache-train F.safetensors
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable

import torch

from data.dataset import collate
from data.gt_cache import GTCache
from data.made_up import random_batch
from evaluation.inference import build_dataset, inference_dtype, move_batch
from models.config import ModelConfig
from models.criterion import MapCriterion
from models.detector import MapDetector, build_detector
from models.flags import add_model_arguments, config_from_flags
from utils.device import default_device
from utils.errors import UserError, run_cli
from utils.files import default_dataroot
from utils.optim import GROUPS, parameter_groups


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--dataroot", default=default_dataroot(), help="folder with the images (default: %(default)s)")
    parser.add_argument("--gt-cache-train", help="check this cache and read samples of it; without it: made-up data")
    parser.add_argument("--batch-size", type=int, default=2)
    args = parser.parse_args()
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    return args


class Preflight:
    """The checks, in the order in which a failure of one explains the next."""

    def __init__(self, config: ModelConfig, args: argparse.Namespace):
        self.config = config
        self.args = args
        self.device = default_device()
        self.criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
        self.model: MapDetector
        self.batch: dict
        self.outputs: dict

    def run_model(self, batch: dict) -> dict:
        """The model's outputs in the precision that training takes on this device."""
        dtype = inference_dtype(self.device)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.model(batch)

    def check_model(self) -> str:
        torch.manual_seed(0)
        self.model = build_detector(self.config, self.device, inference_dtype(self.device) or torch.float32).train()
        counts = {True: 0, False: 0}
        for parameter in self.model.parameters():
            counts[parameter.requires_grad] += parameter.numel()
        return f"{counts[True] / 1e6:.2f} M parameters train, {counts[False] / 1e6:.2f} M are frozen; {self.device}"

    def check_parameter_groups(self) -> str:
        groups = parameter_groups(self.model)
        grouped = {id(p) for members in groups.values() for _, p in members}
        trainable = {id(p) for p in self.model.parameters() if p.requires_grad}
        if grouped != trainable:
            raise RuntimeError(f"{len(trainable - grouped)} trainable parameters are in no group")
        empty = [name for name in GROUPS if not groups[name]]
        if empty:
            raise RuntimeError(f"no parameters in {empty}")
        return ", ".join(f"{name} {sum(p.numel() for _, p in groups[name]) / 1e6:.2f} M" for name in GROUPS)

    def check_forward(self) -> str:
        counts = (3,) * self.args.batch_size
        batch = random_batch(self.config.image_size, self.config.num_points, counts)
        self.batch = move_batch(batch, self.device)
        self.outputs = self.run_model(self.batch)
        for name in ("pred_logits", "pred_pts"):
            if not torch.isfinite(self.outputs[name]).all():
                raise RuntimeError(f"{name} is not finite")
        return (f"pred_logits {tuple(self.outputs['pred_logits'].shape)}, pred_pts "
                f"{tuple(self.outputs['pred_pts'].shape)}, {len(self.outputs['aux_outputs'])} more heads")

    def check_backward(self) -> str:
        loss = self.criterion.total(self.criterion(self.outputs, self.batch))
        loss.backward()
        lines = []
        for group, members in parameter_groups(self.model).items():
            without = [name for name, p in members if p.grad is None]
            if without:
                raise RuntimeError(f"no gradient for {len(without)} parameters of {group}: {without[:3]}")
            norms = torch.stack([p.grad.norm() for _, p in members])
            if not torch.isfinite(norms).all() or norms.sum() == 0:
                raise RuntimeError(f"gradient of {group} is zero or not finite")
            lines.append(f"\n    {group}: norm {norms.norm():.3e}, largest of a tensor {norms.max():.3e}, "
                         f"{(norms > 0).sum()} of {len(norms)} tensors not zero")
        touched = [n for n, p in self.model.named_parameters() if not p.requires_grad and p.grad is not None]
        if touched:
            raise RuntimeError(f"frozen parameters got a gradient: {touched[:3]}")
        return f"loss {loss.item():.2f}\n  Gradient statistics" + "".join(lines)

    def check_data(self) -> str:
        if not self.args.gt_cache_train:
            return "made-up data; give --dataroot and --gt-cache-train to check yours"
        cache = GTCache.open(self.args.gt_cache_train)
        cache.require(pc_range=self.config.pc_range)
        cache.verify()
        config = self.config
        dataset = build_dataset(config, cache, self.args.dataroot)
        start = time.perf_counter()
        indices = range(0, len(dataset), max(1, len(dataset) // 8))
        samples = [dataset[index] for index in indices]
        each = (time.perf_counter() - start) / len(samples)
        lines = sum(len(sample["labels"]) for sample in samples) / len(samples)
        if lines == 0:
            raise RuntimeError(f"{self.args.gt_cache_train}: {len(samples)} samples without one ground-truth line")
        batch = move_batch(collate(samples[: self.args.batch_size]), self.device)
        with torch.no_grad():
            loss = self.criterion.total(self.criterion(self.run_model(batch), batch))
        if not torch.isfinite(loss):
            raise RuntimeError(f"loss {loss.item()} on samples {batch['sample_tokens']}")
        return (f"{len(cache)} samples, split {cache.meta['split']} of {cache.meta['version']}; read {len(samples)}: "
                f"{lines:.1f} lines and {each * 1000:.0f} ms a sample, loss {loss.item():.2f}")


def main() -> None:
    args = parse_args()
    config = config_from_flags(args)
    preflight = Preflight(config, args)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("model", preflight.check_model),
        ("parameter groups", preflight.check_parameter_groups),
        ("forward", preflight.check_forward),
        ("backward", preflight.check_backward),
        ("data", preflight.check_data),
    ]
    for number, (name, check) in enumerate(checks, start=1):
        try:
            print(f"[{number}/{len(checks)}] {name}: {check()}", flush=True)
        except UserError as error:
            print(f"[{number}/{len(checks)}] {name}: FAILED: {error}", flush=True)
            sys.exit(1)
        except Exception:  # whatever it is, it is what the user came to learn
            print(f"[{number}/{len(checks)}] {name}: FAILED\n{traceback.format_exc()}", flush=True)
            sys.exit(1)
    print("all checks passed")


if __name__ == "__main__":
    run_cli(main)
