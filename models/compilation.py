"""torch.compile for what is frozen: the layers of the LLM and of a tower that does not train."""

import os
import shutil

import torch

from models.config import ModelConfig
from models.detector import MapDetector
from utils.errors import UserError

_COMPILERS = ("g++", "clang++")


def check_compiling(config: ModelConfig, device: torch.device, sharded: bool = False) -> None:
    """Raise UserError when compile_frozen would have nothing to do, or could not."""
    reason = None
    if config.llm_path == "none" and config.vision.trainable:
        reason = "the tower trains and --llm-path none leaves no LLM, so that nothing is frozen; leave it out"
    elif sharded:
        reason = "--shard-llm cuts the layers that would be compiled; leave out one of them"
    elif device.type == "cpu" and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), *_COMPILERS)))):
        reason = f"finds neither of {', '.join(_COMPILERS)}; install one, or leave it out"
    if reason:
        raise UserError(f"--compile: {reason}")


def compile_frozen(model: MapDetector) -> None:
    """From now on each frozen layer runs as the code that torch.compile makes of it when it is first called.

    All layers of a kind share that code. Results agree up to rounding, not bit for bit. Names of weights stay.
    Raises UserError for an LLM whose layers are unknown here.
    """
    layers = list(model.llm.layers) if model.llm is not None else []
    if not model.vision.trainable:
        layers += model.vision.model.encoder.layers
    for layer in layers:
        layer.compile()
