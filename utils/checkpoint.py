"""Checkpoints: trainable tensors and the identity of the frozen ones, written whole or not at all."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import replacing

_SAMPLES_PER_TENSOR = 4096
CHECKPOINT_KEYS = frozenset({
    "epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "args",  # what others expect
    "scaler_state_dict", "step", "best_map", "rng_state", "model_config", "frozen_identity",  # exact resumption
})


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of all parameters that train."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def frozen_identity(model: nn.Module) -> str:
    """Digest of the frozen parameters: names, shapes and evenly spaced values, in seconds even for 7B weights.

    Values are compared as bfloat16, so that the same weights in another precision have the same identity up to
    rounding that bfloat16 does not see.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            continue
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        flat = parameter.detach().flatten()
        chosen = flat[:: max(1, flat.numel() // _SAMPLES_PER_TENSOR)].cpu()
        digest.update(chosen.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def load_trainable(model: nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Fill the trainable parameters from a checkpoint; any difference in names, shapes or frozen parts is an error."""
    state = checkpoint["model_state_dict"]
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise UserError(
            f"{path}: does not fit the model: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}; use the settings it was trained with (its config.json)"
        )
    for name, parameter in own.items():
        if parameter.shape != state[name].shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, the model {tuple(parameter.shape)}; "
                "use the settings it was trained with (its config.json)"
            )
    if checkpoint["frozen_identity"] != frozen_identity(model):
        raise UserError(
            f"{path}: was trained with other frozen weights (identity {checkpoint['frozen_identity'][:12]}, here "
            f"{frozen_identity(model)[:12]}); give the same --llm-path and --qformer-pretrained"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def save_checkpoint(checkpoint: dict, path: Path) -> None:
    """A reader sees the old file or the new one, never half of it. Raises UserError when it cannot be written."""
    with replacing(path) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's writer hides the system's reason for a short write
            raise UserError(f"{path}: cannot be written ({error.__context__ or error}); free some space") from error


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of plain types and tensors. Raises UserError when it is missing, damaged or not one."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; give the path of a .pth file made by train_map_detection.py")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or pickle raises one of a dozen types
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a readable checkpoint ({reason}); take an earlier one") from error
    if not isinstance(checkpoint, dict) or not CHECKPOINT_KEYS <= checkpoint.keys():
        raise UserError(f"{path}: not a checkpoint of this project; give a .pth file made by train_map_detection.py")
    return checkpoint
