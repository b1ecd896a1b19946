"""Code that torch compiles when it is first used: the frozen layers with --compile, and flex attention."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from models.config import ModelConfig
from models.detector import MapDetector
from utils.errors import UserError

# Tower and LLM share a limit: with or without gradient, a batch of 1 or more, a sequence of one length or any, and room
# for an LLM with several kinds of layers. torch's own limit is 8, beyond which layers run uncompiled.
_MOST_VARIANTS = 64


def check_compiling(config: ModelConfig, device: torch.device, compiled: bool, sharded: bool = False) -> None:
    """Raise UserError when --compile (`compiled`) or config.llm_attention asks for what cannot be compiled here."""
    if compiled and config.llm_path == "none" and config.vision.trainable:
        raise UserError("--compile: the tower trains and --llm-path none leaves no LLM, so that nothing is frozen; "
                        "leave it out")
    if compiled and sharded:
        raise UserError("--compile: --shard-llm cuts the layers that would be compiled; leave out one of them")
    flex = config.llm_attention == "flex" and device.type == "cuda"
    missing = missing_for_compiling(device) if compiled or flex else None
    if missing:
        raise UserError(f"{'--compile' if compiled else '--llm-attention flex'}: {missing}, or leave it out")


def missing_for_compiling(device: torch.device) -> str | None:
    """What torch needs on this machine to compile for the device and does not find, and what to do; None: nothing."""
    # As torch looks for them: Inductor for C++ on a CPU, Triton for C on a GPU; what both write includes Python.h.
    variable, usual = ("CXX", ("g++",)) if device.type == "cpu" else ("CC", ("gcc", "clang"))
    wanted = (os.environ[variable],) if os.environ.get(variable) else usual
    if not any(map(shutil.which, wanted)):
        return f"no compiler, looked for {' and '.join(wanted)}; install one"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        return f"no {header}; install Python's development files"
    return None


def compile_frozen(model: MapDetector) -> None:
    """From now on each frozen layer runs as the code that torch.compile makes of it when it is first called.

    All layers of a kind share that code. Results agree up to rounding, not bit for bit. Names of weights stay.
    Raises UserError for an LLM whose layers are unknown here.
    """
    layers = list(model.llm.layers) if model.llm is not None else []
    if not model.vision.trainable:
        layers += model.vision.model.encoder.layers
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_VARIANTS)
    for layer in layers:
        layer.compile()
