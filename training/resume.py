"""Going on from a checkpoint: which one, and whether this run may."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from evaluation.inference import config_of
from models.config import ModelConfig
from utils.checkpoint import load_checkpoint
from utils.checkpoint_folder import newest_good
from utils.errors import UserError

# Flags whose change makes another run of it, beside those of the network.
RESULT_FLAGS = ("epochs", "lr_qformer", "lr_queries", "lr_decoder", "lr_lora", "weight_decay", "warmup_steps",
                "grad_clip", "segmentation_weight", "ema_decay", "precision", "seed", "mirror", "noisy_copies",
                "rotation", "zoom", "photometric")
# Settings of the network without a say in the result; load_trainable compares the frozen weights themselves.
_FREE_MODEL_SETTINGS = frozenset({"llm_path", "qformer_pretrained", "llm_attention", "llm_checkpointing"})
# Flags that say nothing about how the run goes on.
_SILENT_FLAGS = frozenset({"resume", "allow_changed", "reshuffle", "output_dir", "fp16", "confirm_unfreeze_llm"})


def find_checkpoint(resume: str, folder: Path) -> tuple[Path, dict] | None:
    """The checkpoint that --resume asks for and its content; None when it is `auto` and the folder holds none.

    Raises UserError when it is not there, when `auto` finds checkpoints of which none can be used, and when it finds
    none but the run has ended there: to begin anew would replace its results.
    """
    if resume != "auto":
        return Path(resume), load_checkpoint(resume)
    found = newest_good(folder)
    final = folder / "final_model.pth"
    if not found and final.exists():
        raise UserError(f"{folder}: holds final_model.pth but no checkpoint_epoch_*.pth; go on from it with "
                        f"--resume {final}, or choose another --output-dir to begin anew")
    return found


def check_resumed_settings(
    path: Path, checkpoint: dict, args: argparse.Namespace, config: ModelConfig, digests: dict[str, str],
    global_batch: int
) -> list[str]:
    """What differs between the checkpoint's settings and this run's, one text each.

    digests: train_digest and val_digest, of the caches; with other ground truth, scores cannot be compared.
    Raises UserError for one that changes the result and is not among --allow-changed, and for a step of another number
    of samples without --reshuffle.
    """
    if checkpoint["optimizer_state_dict"] is None:
        raise UserError(f"{path}: holds weights alone, no training can go on from it; give a checkpoint of the run")
    saved = {name: checkpoint[name] for name in digests}
    before = _result_settings(config_of(checkpoint, path).to_dict(), checkpoint["args"], saved)
    now = _result_settings(config.to_dict(), vars(args), digests)
    allowed = {name for name in args.allow_changed.split(",") if name}
    unknown = sorted(allowed - now.keys())
    if unknown:
        raise UserError(f"--allow-changed {unknown[0]}: no such setting; there are {', '.join(sorted(now))}")
    changed = [name for name in sorted(now) if now[name] != before.get(name)]
    for name in changed:
        if name not in allowed:
            raise UserError(
                f"{path}: was trained with {name} {before.get(name)}, this run has {now[name]}; resume with the "
                f"settings in {path.parent / 'config.json'}, or with --allow-changed {','.join(changed)}"
            )
    if global_batch != checkpoint["global_batch"] and not args.reshuffle:
        raise UserError(
            f"{path}: a step took {checkpoint['global_batch']} samples, here it takes {global_batch} (batch size x "
            "ranks x accumulation steps), which changes the steps of an epoch; choose a batch size and accumulation "
            "with the same product, or give --reshuffle: the epoch begins again"
        )
    texts = [f"{name} {before.get(name)} -> {now[name]}" for name in changed]
    for name, value in sorted(vars(args).items()):
        if name not in now and name not in _SILENT_FLAGS and checkpoint["args"].get(name) != value:
            texts.append(f"{name} {checkpoint['args'].get(name)} -> {value}")
    return texts


def _result_settings(model: Mapping, args: Mapping, digests: Mapping) -> dict:
    settings = {name: value for name, value in model.items() if name not in _FREE_MODEL_SETTINGS}
    return settings | {name: args.get(name) for name in RESULT_FLAGS} | dict(digests)
