"""The detector at full size for benchmarks: flags, and the model without memory (meta and fake tensors)."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from data.made_up import USUAL_COUNT, random_batch
from data.noisy_lines import NUM_COPIES
from models.config import PRESETS, QUANTIZATIONS, ModelConfig
from models.detector import MapDetector, build_detector
from utils.errors import UserError


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that shape the model; weights are random, and the LLM has the shape of a LLaMA-7B unless told otherwise."""
    parser.add_argument("--preset", default="base", choices=PRESETS)
    parser.add_argument("--llm-path", default="random", help="random (the preset's shape), none, a folder or a hub id")
    parser.add_argument("--layers", type=int, help="at most this many layers in tower, Q-Former and random LLM")
    parser.add_argument("--llm-quantization", default="none", choices=QUANTIZATIONS)
    parser.add_argument("--llm-layers", type=int, default=0, help="the LLM's first layers alone; 0: all")
    parser.add_argument("--lora-rank", type=int, default=0)


def config_from(args: argparse.Namespace) -> ModelConfig:
    """The preset as the flags change it. Raises UserError for values that cannot be meant."""
    preset = PRESETS[args.preset]
    if args.layers is not None:
        if args.layers < 1:
            raise UserError(f"--layers {args.layers}: must be at least 1")
        parts = {
            name: replace(getattr(preset, name), num_layers=min(getattr(preset, name).num_layers, args.layers))
            for name in ("vision", "qformer", "random_llm")
        }
        preset = replace(preset, **parts)
    return changed_config(
        preset, llm_path=args.llm_path, qformer_pretrained="none", lora_rank=args.lora_rank,
        llm_quantization=args.llm_quantization, llm_layers=args.llm_layers,
    )  # fmt: skip


def changed_config(config: ModelConfig, **changes: object) -> ModelConfig:
    """The config with these changes. Raises UserError for values that cannot be meant."""
    try:
        return replace(config, **changes)
    except ValueError as error:
        raise UserError(str(error)) from error


def made_up_batch(config: ModelConfig, batch_size: int) -> dict:
    """A batch for the model, on the CPU."""
    counts = (USUAL_COUNT,) * batch_size
    return random_batch(config.image_size, config.num_points, counts, noisy_copies=NUM_COPIES)


@contextmanager
def fake_detector(config: ModelConfig, frozen_dtype: torch.dtype, device: str = "cpu") -> Iterator[MapDetector]:
    """The model in fake tensors, which have sizes but no content, inside the mode in which they work."""
    model = build_detector(config, torch.device("meta"), frozen_dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield model.to_empty(device=device).train()


def stand_in_loss(outputs: dict) -> Tensor:
    """A scalar that depends on every output; the real losses look at values, which fake tensors do not have."""
    heads = [outputs, *outputs["aux_outputs"], *outputs["noisy_outputs"]]
    parts = [value for head in heads for value in (head["pred_logits"], head["pred_pts"])]
    parts += [outputs["seg_logits"], outputs["scene_logits"], outputs["ground_logits"]]
    return sum(part.float().sum() for part in parts)
