"""What this process computes with."""

import os

import torch


def default_device() -> torch.device:
    """The GPU if there is one; under torchrun each process of a machine takes its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
