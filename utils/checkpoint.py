"""Checkpoints: trainable tensors and the identity of the frozen ones, written whole or not at all, with a digest."""

import hashlib
import os
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError, one_line
from utils.files import replacing

_SAMPLES_PER_TENSOR = 64
CHECKPOINT_KEYS = frozenset({
    "epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "args",  # what others expect
    "model_config", "frozen_identity", "ema_state_dict", "ema_steps", "scaler_state_dict", "best_map",
    "steps_done", "step", "validated", "overflows", "num_records", "rng_states",  # exact resumption
    "global_batch", "train_digest", "val_digest",  # of what it may go on with
})


# What only a training that goes on needs, and flags that say where things lie on the machine of the training.
_TRAINING_STATE = ("optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "ema_state_dict", "rng_states")
_PLACES = ("dataroot", "gt_cache_train", "gt_cache_val", "output_dir", "resume")
_WEIGHTS = ("llm_path", "qformer_pretrained")  # may be a folder, then its name alone says what it was


def weights_alone(checkpoint: dict) -> dict:
    """A checkpoint that can be used but not trained on: without the training's state and the places of its machine.

    Its weights are those that the run was validated with: their average over the steps where it kept one.
    """
    weights = checkpoint["ema_state_dict"] or checkpoint["model_state_dict"]
    flags = {name: value for name, value in checkpoint["args"].items() if name not in _PLACES}
    changed = dict.fromkeys(_TRAINING_STATE) | {"model_state_dict": weights, "args": _without_folders(flags),
                                                "model_config": _without_folders(checkpoint["model_config"])}
    return {key: value for key, value in checkpoint.items() if key != "digest"} | changed


def _without_folders(settings: dict) -> dict:
    """The settings, weights that were on this machine by the name of their file or folder."""
    return {name: Path(value).name if name in _WEIGHTS and value and Path(value).exists() else value
            for name, value in settings.items()}


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of all parameters that train."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def frozen_identity(model: nn.Module) -> dict[str, Tensor]:
    """Evenly spaced values of each frozen parameter, float32, by which to know it again; seconds for 7B weights."""
    identity = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            flat = parameter.detach().flatten()
            identity[name] = flat[:: -(-flat.numel() // _SAMPLES_PER_TENSOR)].float().cpu().clone()
    return identity


def differing_frozen(saved: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Names of the frozen parameters that are not the same in both identities, up to the rounding of half precision."""
    differing = sorted(saved.keys() ^ own.keys())
    for name in saved.keys() & own.keys():
        a, b = saved[name], own[name]
        if a.shape != b.shape or not torch.allclose(a, b, rtol=2**-7, atol=1e-3 * a.abs().max().item()):
            differing.append(name)
    return differing


def load_trainable(
    model: nn.Module,
    checkpoint: dict,
    path: str | Path,
    averaged: bool = False,
    identity: dict[str, Tensor] | None = None,
) -> None:
    """Fill the trainable parameters from a checkpoint; any difference in names, shapes or frozen parts is an error.

    averaged: take the average over the steps where the run kept one, the weights that it was validated with.
    identity: the model's frozen_identity where it is known already.
    """
    state = (averaged and checkpoint["ema_state_dict"]) or checkpoint["model_state_dict"]
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise UserError(
            f"{path}: does not fit the model: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}; "
            "use the settings (its config.json) and the code it was trained with"
        )
    for name, parameter in own.items():
        if parameter.shape != state[name].shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, the model {tuple(parameter.shape)}; "
                "use the settings (its config.json) and the code it was trained with"
            )
        if not state[name].isfinite().all():
            raise UserError(f"{path}: {name} holds values that are not finite; take an earlier checkpoint")
    differing = differing_frozen(checkpoint["frozen_identity"], identity or frozen_identity(model))
    if differing:
        raise UserError(
            f"{path}: was trained with other frozen weights, {len(differing)} tensors differ (the first: "
            f"{differing[0]}); give the same --llm-path and --qformer-pretrained"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def checkpoint_digest(checkpoint: dict) -> str:
    """SHA-256 of the content: keys in their order, plain values, and dtype, shape and bytes of tensors on any device.

    A digest that it already holds under "digest" is left out. Raises TypeError for what torch.load would refuse to
    read again with weights_only=True, such as NumPy's numbers.
    """
    digest = hashlib.sha256()
    _add_to_digest(digest, {key: value for key, value in checkpoint.items() if key != "digest"}, "checkpoint")
    return digest.hexdigest()


def save_checkpoint(checkpoint: dict, path: Path) -> None:
    """A reader sees the old file or the new one, never half of it. Raises UserError when it cannot be written."""
    whole = {**checkpoint, "digest": checkpoint_digest(checkpoint)}
    with replacing(path) as file:
        try:
            torch.save(whole, file)
        except RuntimeError as error:  # torch's writer hides the system's reason for a short write
            raise UserError(f"{path}: cannot be written ({error.__context__ or error}); free some space") from error


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of plain types and tensors. Raises UserError when it is missing, damaged or not one.

    PyTorch reads tensors without comparing the archive's checksums, so the digest is what notices a flipped bit.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint; give the path of a .pth file made by train_map_detection.py")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        ours = isinstance(checkpoint, dict) and "model_state_dict" in checkpoint
        digest = checkpoint_digest(checkpoint) if ours and "digest" in checkpoint else None
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable") from error
    except Exception as error:  # a damaged zip or pickle raises one of a dozen types
        raise UserError(f"{path}: not a readable checkpoint ({one_line(error, 120)}); take an earlier one") from error
    if not ours:
        raise UserError(f"{path}: not a checkpoint of this project; give a .pth file made by train_map_detection.py")
    if digest is not None and digest != checkpoint["digest"]:
        raise UserError(f"{path}: altered since it was written, its content has another digest; take an earlier one")
    complete = digest is not None and CHECKPOINT_KEYS <= checkpoint.keys()
    if not complete or not isinstance(checkpoint["frozen_identity"], dict):
        raise UserError(f"{path}: a checkpoint of an earlier version of this code; use that version, or train again")
    return checkpoint


def _add_to_digest(digest: "hashlib._Hash", value: object, place: str) -> None:
    """Every part is preceded by its kind and length, so that no two contents give the same bytes."""
    kind = type(value)
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)} {value.requires_grad};".encode())
        flat = value.detach().cpu().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())  # as bytes, since NumPy has no bfloat16
    elif kind in (dict, OrderedDict):
        digest.update(f"{kind.__name__} {len(value)};".encode())
        for key, item in value.items():
            _add_to_digest(digest, key, f"a key of {place}")
            _add_to_digest(digest, item, f"{place}[{key!r}]")
    elif kind in (list, tuple):
        digest.update(f"{kind.__name__} {len(value)};".encode())
        for index, item in enumerate(value):
            _add_to_digest(digest, item, f"{place}[{index}]")
    elif value is None or kind in (bool, int, float, str, bytes):
        text = repr(value).encode()
        digest.update(f"{kind.__name__} {len(text)};".encode() + text)
    else:
        raise TypeError(f"{place} is a {kind.__name__}; checkpoints hold plain types and tensors alone")
