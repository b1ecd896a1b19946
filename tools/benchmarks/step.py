"""A real training step with random weights: seconds, samples/s, peak memory, and the share of the machine's rate (MFU).

Model FLOP are those of the forward and backward pass, counted operator by operator and without what gradient
checkpointing computes twice; the machine's rate is that of a large matrix product in the same precision, measured in
the same run.
"""

import argparse
import gc
import time
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evaluation.inference import move_batch
from models.compilation import check_compiling, compile_frozen
from models.config import ATTENTIONS, ModelConfig
from models.criterion import MapCriterion
from models.detector import build_detector
from tools.benchmarks.common import private_memory_mb, spread, timed
from tools.benchmarks.full_model import (
    add_model_arguments,
    changed_config,
    config_from,
    fake_detector,
    made_up_batch,
    stand_in_loss,
)
from utils.device import PRECISIONS, default_device, default_precision
from utils.errors import UserError
from utils.optim import build_optimizer, parameter_groups


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="of the LLM")
    parser.add_argument("--llm-attention", choices=ATTENTIONS, default="sdpa", help="flex: on a GPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the frozen layers")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)


def run(args: argparse.Namespace) -> dict:
    """Measure and print; returns the figures."""
    if min(args.batch_size, args.steps) < 1 or args.warmup < 0:
        raise UserError(
            f"--batch-size {args.batch_size} --steps {args.steps} --warmup {args.warmup}: expected at least 1, 1 and 0"
        )
    precision = args.precision or default_precision(torch.cuda.is_available())
    dtype = PRECISIONS[precision]
    config = changed_config(
        config_from(args), llm_attention=args.llm_attention, llm_checkpointing=args.gradient_checkpointing
    )
    if args.llm_attention == "flex" and default_device().type != "cuda":
        raise UserError("--llm-attention flex: has no backward pass on a CPU; leave it out, or take a CUDA device")
    check_compiling(config, default_device(), args.compile)
    flop = model_flop(config, args.batch_size)
    rate = matmul_rate(dtype)
    found = measure_step(config, made_up_batch(config, args.batch_size), dtype, args.steps, args.warmup, args.compile)
    seconds = found["seconds"]["median"]
    found |= {
        "precision": precision,
        "samples_per_s": args.batch_size / seconds,
        "model_tflop": flop / 1e12,
        "matmul_tflops": rate / 1e12,
        "mfu": flop / seconds / rate,
    }
    memory = f"peak {found['peak_gb']:.2f} GB" if found["held_gb"] is None else f"holds {found['held_gb']:.2f} GB"
    print(
        f"batch {args.batch_size}, {precision}, checkpointing {'on' if config.llm_checkpointing else 'off'}, "
        f"{config.llm_attention}{', compiled' if args.compile else ''}, {default_device()}: "
        f"{seconds:.3f} s a step ({found['samples_per_s']:.2f} samples/s), {memory}, "
        f"{flop / 1e12:.2f} model TFLOP, {found['mfu']:.0%} of the matrix product's {rate / 1e12:.3g} TFLOP/s"
    )
    return found


class RepeatedStep:
    """A training step on one batch, from random weights of a fixed seed; each call takes the next step."""

    def __init__(self, config: ModelConfig, batch: dict, dtype: torch.dtype, compiled: bool = False):
        self.device, self.dtype = default_device(), dtype
        torch.manual_seed(0)
        self.model = build_detector(config, self.device, dtype).train()
        if compiled:
            compile_frozen(self.model)
        self.criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
        self.optimizer = build_optimizer(self.model, dict.fromkeys(parameter_groups(self.model), 1e-4), 0.01)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.batch = move_batch(batch, self.device)

    def __call__(self) -> Tensor:
        """Forward, losses, backward, clipping and optimizer, to their end; returns the loss."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            outputs = self.model(self.batch)
        loss = self.criterion.total(self.criterion(outputs, self.batch))
        self.model.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.trained, 0.1)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return loss.detach()


def measure_step(
    config: ModelConfig, batch: dict, dtype: torch.dtype, steps: int, warmup: int, compiled: bool = False
) -> dict:
    """Seconds of a RepeatedStep, its losses, warm-up included, and the peak memory in gigabytes (10^9 bytes).

    On a CPU, whose peak is not known, peak_gb is None and held_gb what the process holds after the last step.
    """
    step = RepeatedStep(config, batch, dtype, compiled)
    if step.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    losses, seconds = zip(*(timed(step) for _ in range(warmup + steps)), strict=True)
    peak = torch.cuda.max_memory_allocated() / 1e9 if step.device.type == "cuda" else None
    held = None if peak is not None else private_memory_mb() / 1e3
    del step
    gc.collect()
    return {
        "seconds": spread(seconds[warmup:]), "losses": [loss.item() for loss in losses], "peak_gb": peak,
        "held_gb": held,
    }  # fmt: skip


def model_flop(config: ModelConfig, batch_size: int) -> int:
    """Floating-point operations of one forward and backward pass, without any that checkpointing repeats."""
    batch = made_up_batch(config, batch_size)
    # Quantised weights cannot be made without values; the products are the same.
    plain = replace(config, llm_checkpointing=False, llm_quantization="none")
    # Attention as two products: some versions of torch do not count what its fused kernels for a CPU do.
    with (
        fake_detector(plain, torch.float32) as model, FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # fmt: skip
        stand_in_loss(model(batch)).backward()
    return counter.get_total_flops()


def matmul_rate(dtype: torch.dtype, rows: int = 2048, width: int = 4096) -> float:
    """FLOP/s of the product of [rows, width] and [width, width], the shape of the LLM's work; the best of several."""
    device = default_device()
    a = torch.randn(rows, width, device=device).to(dtype)
    b = torch.randn(width, width, device=device).to(dtype)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * rows * width * width / best
