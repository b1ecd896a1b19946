"""What this process computes with."""

import os

import torch


def default_device(kind: str = "auto") -> torch.device:
    """The GPU if there is one and kind is not `cpu`; under torchrun each process of a machine takes its own."""
    if kind == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
