"""Whether the model that is to be trained works here: build, parameter groups, forward, backward, data."""

import time
from pathlib import Path

import torch

from data.dataset import collate
from data.gt_cache import GTCache
from data.made_up import USUAL_COUNT, random_batch
from data.noisy_lines import NUM_COPIES
from evaluation.inference import build_dataset, move_batch
from models.config import ModelConfig
from models.criterion import MapCriterion
from models.detector import MapDetector, build_detector
from utils.checklist import Skipped
from utils.device import autocast_of, default_device, default_precision
from utils.optim import GROUPS, parameter_groups


class ModelChecks:
    """The checks, in the order in which a failure of one explains the next."""

    def __init__(self, config: ModelConfig, batch_size: int):
        self.config = config
        self.batch_size = batch_size
        self.device = default_device()
        self.dtype = autocast_of(default_precision(self.device.type == "cuda"))
        self.criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
        self.model: MapDetector
        self.batch: dict
        self.outputs: dict

    def run_model(self, batch: dict) -> dict:
        """The model's outputs in the precision that training takes on this device."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.model(batch)

    def check_model(self) -> str:
        torch.manual_seed(0)
        self.model = build_detector(self.config, self.device, self.dtype or torch.float32).train()
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
        empty = [name for name in GROUPS if not groups[name] and name not in self.config.without]
        if empty:
            raise RuntimeError(f"no parameters in {empty}")
        return ", ".join(f"{name} {sum(p.numel() for _, p in groups[name]) / 1e6:.2f} M" for name in GROUPS)

    def check_forward(self) -> str:
        counts = (min(USUAL_COUNT, self.config.num_instances),) * self.batch_size
        batch = random_batch(self.config.image_size, self.config.num_points, counts, noisy_copies=NUM_COPIES)
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
            if not members:  # left out, see check_parameter_groups
                continue
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

    def check_data(self, cache: GTCache | None, dataroot: str | Path) -> str:
        """Samples of a checked cache through the model; None when there is none."""
        if cache is None:
            raise Skipped("made-up data only; give --dataroot and --gt-cache-train to check yours")
        dataset = build_dataset(self.config, cache, dataroot)
        start = time.perf_counter()
        indices = range(0, len(dataset), max(1, len(dataset) // 8))
        samples = [dataset[index] for index in indices]
        each = (time.perf_counter() - start) / len(samples)
        lines = sum(len(sample["labels"]) for sample in samples) / len(samples)
        if lines == 0:
            raise RuntimeError(f"{cache.path}: {len(samples)} samples without one ground-truth line")
        batch = move_batch(collate(samples[: self.batch_size]), self.device)
        with torch.no_grad():
            loss = self.criterion.total(self.criterion(self.run_model(batch), batch))
        if not torch.isfinite(loss):
            raise RuntimeError(f"loss {loss.item()} on samples {batch['sample_tokens']}")
        return (f"{len(cache)} samples, split {cache.meta['split']} of {cache.meta['version']}; read {len(samples)}: "
                f"{lines:.1f} lines and {each * 1000:.0f} ms a sample, loss {loss.item():.2f}")

