"""What this process computes with."""

import os

import torch

from utils.errors import UserError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def default_precision(on_gpu: bool) -> str:
    """Of PRECISIONS, where nothing else is said."""
    return "fp16" if on_gpu else "fp32"


def autocast_of(precision: str) -> torch.dtype | None:
    """What autocast computes in; None: full precision, no autocast."""
    return PRECISIONS[precision] if precision != "fp32" else None


def default_device(kind: str = "auto") -> torch.device:
    """The GPU if there is one and kind is not `cpu`; under torchrun each process of a machine takes its own.

    Raises UserError when there are fewer GPUs than processes.
    """
    if kind == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise UserError(f"LOCAL_RANK {index}: there are {count} GPUs here; start as many processes as there are GPUs")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    # By default convolutions, unlike matrix products, round float32 to TF32's ten bits: fp32 would not be what it says.
    torch.backends.cudnn.allow_tf32 = False
    return device
