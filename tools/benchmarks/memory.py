"""Memory of a training step at full size, from the sizes of all tensors; on a CUDA device the real peak beside it.

The whole step - forward, backward, optimizer - runs with tensors that have a size but no content, and every storage is
followed from the operator that makes it until it is freed. Not in the estimate: what kernels use inside, rounding by
the allocator, the CUDA context (about half a gigabyte), the matching's cost tensor (some megabytes), and that a GPU's
autocast keeps norms and resized features in float32 where the CPU's, which is followed, has half precision.
"""

import argparse
import gc
import sys
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.llm.lora import attach_update
from tools.benchmarks.full_model import (
    add_model_arguments,
    config_from,
    fake_detector,
    made_up_batch,
    stand_in_loss,
)
from tools.benchmarks.live_memory import LiveMemory
from tools.benchmarks.step import measure_step
from utils.device import PRECISIONS
from utils.errors import UserError
from utils.optim import build_optimizer, parameter_groups

# Bits of a frozen weight: int8 has a float32 scale for each row; nf4 (QLoRA) an 8-bit scale for each block of 64 and a
# float32 one for each 256 of those.
STORED_BITS = {"int8": 8.0, "nf4": 4 + 8 / 64 + 32 / (64 * 256)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--precision", default="fp16", choices=PRECISIONS, help="of the frozen parts and activations")
    parser.add_argument("--gradient-checkpointing", choices=("off", "on", "both"), default="both", help="of the LLM")


def run(args: argparse.Namespace) -> dict:
    """Print a table; returns a row for each batch size and choice of checkpointing, in gigabytes (10^9 bytes)."""
    if min(args.batch_size) < 1:
        raise UserError(f"--batch-size {min(args.batch_size)}: must be at least 1")
    config = config_from(args)
    choices = {"off": (False,), "on": (True,), "both": (False, True)}[args.gradient_checkpointing]
    if config.llm_path == "none":
        choices = (False,)
    rows = []
    print("batch  checkpointing  weights  gradients  optimizer  activations  peak GB (estimated)  peak GB (measured)")
    for batch_size in args.batch_size:
        for checkpointing in choices:
            row = estimate(replace(config, llm_checkpointing=checkpointing), batch_size, PRECISIONS[args.precision])
            row |= measured_peak(replace(config, llm_checkpointing=checkpointing), batch_size, args)
            rows.append({"batch_size": batch_size, "gradient_checkpointing": checkpointing, **row})
            measured = {None: "not run", False: "does not fit"}.get(row["fits"]) or f"{row['measured_gb']:.2f}"
            print(
                f"{batch_size:5}  {'on' if checkpointing else 'off':>13}  {row['weights_gb']:7.2f}  "
                f"{row['gradients_gb']:9.2f}  {row['optimizer_gb']:9.2f}  {row['activations_gb']:11.2f}  "
                f"{row['peak_gb']:19.2f}  {measured:>18}"
            )
            sys.stdout.flush()
    return {"rows": rows}


def estimate(config: ModelConfig, batch_size: int, dtype: torch.dtype) -> dict[str, float]:
    """Gigabytes of a step's parts and its peak, the second step, when the optimizer's states are there."""
    quantization = config.llm_quantization
    # The CPU's autocast knows bfloat16 everywhere; float16 is as wide.
    half = torch.float32 if dtype is torch.float32 else torch.bfloat16
    batch = made_up_batch(config, batch_size)
    with fake_detector(replace(config, llm_quantization="none"), half) as model:
        if quantization != "none":
            pack_linears(model.llm.model, STORED_BITS[quantization])
        weights = [*model.parameters(), *model.buffers()]
        rates = dict.fromkeys(parameter_groups(model), 1e-4)
        optimizer = build_optimizer(model, rates, weight_decay=0.01)
        tensors = [value for value in batch.values() if isinstance(value, Tensor)]
        with LiveMemory([*weights, *tensors]) as memory:
            held = memory.live
            for _ in range(2):
                memory.peak = memory.live
                with torch.autocast("cpu", half, enabled=half is not torch.float32):
                    outputs = model(batch)
                loss = stand_in_loss(outputs)
                before_backward = memory.live
                loss.backward()
                del outputs, loss
                optimizer.step()
                optimizer.zero_grad()
            states = sum(v.nbytes for state in optimizer.state.values() for v in state.values())
        gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    parts = {
        "weights": held,
        "gradients": gradients,
        "optimizer": states,
        "activations": before_backward - held - states,
        "peak": memory.peak,
    }
    return {f"{name}_gb": nbytes / 1e9 for name, nbytes in parts.items()}


class PackedLinear(nn.Module):
    """A frozen linear layer whose weight is stored in fewer bits, in size alone: it computes nothing of use.

    As bitsandbytes does, the weight is unpacked for the product, forward and backward, and given back at once.
    """

    def __init__(self, linear: nn.Linear, bits: float):
        super().__init__()
        self.shape = tuple(linear.weight.shape)
        packed = torch.empty(int(linear.weight.numel() * bits / 8), dtype=torch.uint8, device=linear.weight.device)
        self.register_buffer("packed", packed)
        self.dtype = linear.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        return _PackedProduct.apply(x.to(self.dtype), self.packed, self.shape)


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.packed, ctx.shape = packed, shape
        return F.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape), None, None


def pack_linears(model: nn.Module, bits: float) -> None:
    """Put a PackedLinear in the place of each linear layer."""
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            packed = PackedLinear(linear, bits)
            if hasattr(linear, "lora"):
                attach_update(packed, linear.lora)
            setattr(model.get_submodule(parent), leaf, packed)


def measured_peak(config: ModelConfig, batch_size: int, args: argparse.Namespace) -> dict[str, float | bool | None]:
    """On a CUDA device whether the step fits and its real peak in gigabytes; None for both where it cannot be run.

    That is without a device, and without the package that a quantization takes.
    """
    if not torch.cuda.is_available():
        return {"fits": None, "measured_gb": None}
    batch = made_up_batch(config, batch_size)
    try:
        found = measure_step(config, batch, PRECISIONS[args.precision], steps=2, warmup=1)
        return {"fits": True, "measured_gb": found["peak_gb"]}
    except UserError as error:
        print(f"warning: estimated only: {error}", file=sys.stderr)
        return {"fits": None, "measured_gb": None}
    except torch.OutOfMemoryError:
        pass  # the traceback, which holds the step's tensors, ends here
    gc.collect()
    torch.cuda.empty_cache()
    return {"fits": False, "measured_gb": None}
