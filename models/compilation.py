"""Code that torch compiles when it is first used: the frozen layers with --compile, and flex attention."""

import os
import shutil

import torch

from models.config import ModelConfig
from models.detector import MapDetector
from utils.errors import UserError

# One for each of: tower or LLM, with or without gradient, a batch of 1 or more, a sequence of one length or any.
_MOST_VARIANTS = 64


def check_compiling(config: ModelConfig, device: torch.device, compiled: bool, sharded: bool = False) -> None:
    """Raise UserError when --compile (`compiled`) or config.llm_attention asks for what cannot be compiled here."""
    if compiled and config.llm_path == "none" and config.vision.trainable:
        raise UserError("--compile: the tower trains and --llm-path none leaves no LLM, so that nothing is frozen; "
                        "leave it out")
    if compiled and sharded:
        raise UserError("--compile: --shard-llm cuts the layers that would be compiled; leave out one of them")
    flex = config.llm_attention == "flex" and device.type == "cuda"
    if compiled or flex:
        # As torch looks for them: Inductor for C++ on a CPU, Triton for C on a GPU.
        variable, usual = ("CXX", ("g++",)) if device.type == "cpu" else ("CC", ("gcc", "clang"))
        wanted = (os.environ[variable],) if os.environ.get(variable) else usual
        if not any(map(shutil.which, wanted)):
            raise UserError(f"{'--compile' if compiled else '--llm-attention flex'}: no compiler, looked for "
                            f"{' and '.join(wanted)}; install one, or leave it out")


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
