"""BLIP-2's vision tower, Q-Former and query tokens out of any BLIP-2 checkpoint; its language model is never read."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Blip2QFormerConfig, Blip2VisionConfig, PreTrainedConfig

from models.config import QFormerConfig, VisionConfig
from models.qformer import CameraQFormer, qformer_hf_config
from models.tensor_files import CheckpointSource, fetch_files, find_checkpoint, map_tensors, read_json, tensor_index
from models.vision import VisionTower, vision_hf_config
from utils.errors import UserError

FLAG = "--qformer-pretrained"
ALIASES = {"blip2": "Salesforce/blip2-opt-2.7b"}
_WANTED_FILES = (
    "config.json and model.safetensors, or model.safetensors.index.json with the shards that it names for "
    "vision_model, qformer and query_tokens,"
)

# Every setting of config.json that the outputs depend on, as transformers reads it.
_VISION_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size",
                  "image_size", "hidden_act", "layer_norm_eps", "attention_dropout", "qkv_bias")
_QFORMER_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                   "cross_attention_frequency", "hidden_act", "layer_norm_eps", "hidden_dropout_prob",
                   "attention_probs_dropout_prob")
_DEFAULT_QUERY_TOKENS = 32  # what a config.json that does not say it means

# What the Q-Former reads text with; image-text retrieval has it, images never pass through it.
_TEXT_BRANCH = re.compile(r"encoder\.layer\.\d+\.(intermediate|output)\.")
_STORED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Blip2Settings:
    """What a config.json says of the two parts, with the path it was read from."""

    path: Path
    vision: Blip2VisionConfig
    qformer: Blip2QFormerConfig
    num_query_tokens: int

    def require_same(self, vision: PreTrainedConfig, qformer: PreTrainedConfig, num_query_tokens: int) -> None:
        """Raise UserError that names every setting in which a model would compute otherwise."""
        differences = [
            f"{part}.{name} is {getattr(theirs, name)!r}, the model's {getattr(ours, name)!r}"
            for part, fields, theirs, ours in (
                ("vision_config", _VISION_FIELDS, self.vision, vision),
                ("qformer_config", _QFORMER_FIELDS, self.qformer, qformer),
            )
            for name in fields
            if getattr(theirs, name) != getattr(ours, name)
        ]
        if self.num_query_tokens != num_query_tokens:
            differences.append(f"num_query_tokens is {self.num_query_tokens}, the model's {num_query_tokens}")
        if differences:
            raise UserError(f"{self.path}: {'; '.join(differences)}; take a checkpoint with the model's settings")


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from where; str() is one line for the log."""

    source: str
    parts: dict[str, tuple[int, int]]  # vision tower, Q-Former, query tokens -> tensors, parameters
    files: dict[str, int]  # file name -> tensors taken from it
    dtypes: tuple[str, ...]  # as stored; the modules keep their own
    left_behind: dict[str, int]  # part of the checkpoint -> tensors not read

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {n} tensors {size / 1e6:.2f} M" for name, (n, size) in self.parts.items())
        files = ", ".join(f"{name} ({n})" for name, n in self.files.items())
        left = ", ".join(f"{name} {n}" for name, n in self.left_behind.items()) or "nothing"
        return f"BLIP-2 from {self.source}: {parts}; {'/'.join(self.dtypes)} from {files}; not read: {left}"


def blip2_config(source: str) -> tuple[VisionConfig, QFormerConfig]:
    """Our settings for the vision tower and Q-Former of a checkpoint, the tower frozen.

    source: `blip2`, a folder, a weights file with its config.json beside it, or a hub id. Only config.json is read.
    Raises UserError when it is missing or of another architecture, or has a setting that ours cannot express.
    """
    settings = _read_settings(_find(source))
    vision, qformer = settings.vision, settings.qformer
    try:
        ours = (
            VisionConfig(
                hidden_size=vision.hidden_size, num_layers=vision.num_hidden_layers,
                num_heads=vision.num_attention_heads, mlp_size=vision.intermediate_size,
                patch_size=vision.patch_size, position_grid=vision.image_size // vision.patch_size,
            ),
            QFormerConfig(
                hidden_size=qformer.hidden_size, num_layers=qformer.num_hidden_layers,
                num_heads=qformer.num_attention_heads, mlp_size=qformer.intermediate_size,
                cross_attention_frequency=qformer.cross_attention_frequency,
                num_query_tokens=settings.num_query_tokens, dropout=qformer.hidden_dropout_prob,
            ),
        )
    except ValueError as error:
        raise UserError(f"{settings.path}: {error}; take a whole BLIP-2 checkpoint") from error
    settings.require_same(vision_hf_config(ours[0]), qformer_hf_config(ours[1], ours[0].hidden_size),
                          ours[1].num_query_tokens)
    return ours


def load_blip2(vision: VisionTower, qformer: CameraQFormer, source: str) -> LoadReport:
    """Fill every parameter and persistent buffer of both modules, in the precision and on the device where they are.

    source: as for blip2_config. Of the weights only the files with needed tensors are opened, and of these only the
    needed tensors read. Raises UserError, before anything is read, when a setting differs, a tensor is missing, has
    another shape or is not floating point, or the checkpoint has one that the modules have no place for.
    """
    checkpoint = _find(source)
    settings = _read_settings(checkpoint)
    settings.require_same(vision.model.config, qformer.model.config, qformer.query_tokens.shape[1])
    file_of = tensor_index(checkpoint)
    prefix = _prefix(checkpoint, file_of)
    wanted = {prefix + name: tensor for name, tensor in blip2_tensors(vision, qformer).items()}
    _require_all(checkpoint, wanted, file_of)
    left_behind = _left_behind(checkpoint, (name.removeprefix(prefix) for name in file_of if name not in wanted))
    needed = {name: file_of[name] for name in wanted}
    stored: dict[str, Tensor] = {}
    for file, path in fetch_files(checkpoint, needed).items():
        stored |= map_tensors(path, [name for name in needed if needed[name] == file])
    _require_all(checkpoint, wanted, stored)
    _require_fit(checkpoint, wanted, stored)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()}
    with torch.no_grad():
        for name, tensor in wanted.items():
            assert not tensor.is_meta, "a tensor on the meta device cannot be filled"
            tensor.copy_(stored.pop(name))
    parts = {
        part: (len(sizes), sum(sizes))
        for part, start in (("vision tower", "vision_model."), ("Q-Former", "qformer."), ("query tokens", "query_"))
        if (sizes := [t.numel() for name, t in wanted.items() if name.startswith(prefix + start)])
    }
    return LoadReport(checkpoint.repo_id or checkpoint.value, parts, dict(sorted(Counter(needed.values()).items())),
                      tuple(sorted(dtypes)), left_behind)


def blip2_tensors(vision: VisionTower, qformer: CameraQFormer) -> dict[str, Tensor]:
    """What a checkpoint has to fill, under the names that it has there; the tensors are the modules' own memory."""
    return {
        **{f"vision_model.{name}": tensor for name, tensor in vision.model.state_dict().items()},
        **{f"qformer.{name}": tensor for name, tensor in qformer.model.state_dict().items()},
        "query_tokens": qformer.query_tokens.detach(),
    }


def _find(source: str) -> CheckpointSource:
    return find_checkpoint(FLAG, source, ALIASES.get(source, source), _WANTED_FILES)


def _read_settings(checkpoint: CheckpointSource) -> Blip2Settings:
    path = checkpoint.first("config.json")
    if path is None:
        raise UserError(f"{checkpoint}: has no config.json; put {_WANTED_FILES} into a folder and give {FLAG} FOLDER")
    values = read_json(path)
    if values.get("model_type") != "blip-2":
        raise UserError(f"{path}: model_type is {values.get('model_type')!r}, expected 'blip-2'; give a BLIP-2 "
                        "checkpoint such as blip2-opt-2.7b, blip2-flan-t5-xl or blip2-itm-vit-g")
    sections = {name: values.get(name) or {} for name in ("vision_config", "qformer_config")}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise UserError(f"{path}: {name} is {section!r}, expected an object; fetch it again")
    if (position := sections["qformer_config"].get("position_embedding_type", "absolute")) != "absolute":
        raise UserError(f"{path}: qformer_config.position_embedding_type is {position!r}, the model's 'absolute'; "
                        "take a checkpoint with the model's settings")
    num_query_tokens = values.get("num_query_tokens", _DEFAULT_QUERY_TOKENS)
    _require_kind(path, "num_query_tokens", num_query_tokens, _DEFAULT_QUERY_TOKENS)
    vision = _section(path, "vision_config", sections["vision_config"], Blip2VisionConfig, _VISION_FIELDS)
    qformer = _section(path, "qformer_config", sections["qformer_config"], Blip2QFormerConfig, _QFORMER_FIELDS)
    if vision.image_size < vision.patch_size:
        raise UserError(f"{path}: vision_config.image_size is {vision.image_size}, expected at least the patch_size "
                        f"{vision.patch_size}; take a whole BLIP-2 checkpoint")
    vision.image_size -= vision.image_size % vision.patch_size  # the rest of a patch has no position either
    return Blip2Settings(path, vision, qformer, num_query_tokens)


def _section(path: Path, section: str, values: dict, kind: type, fields: tuple[str, ...]) -> PreTrainedConfig:
    defaults = kind()
    given = {name: values[name] for name in fields if name in values}
    for name, value in given.items():
        _require_kind(path, f"{section}.{name}", value, getattr(defaults, name))
    return kind(**given)


def _require_kind(path: Path, name: str, value: object, default: object) -> None:
    """A value must be what its default is: a flag, a word, a positive whole number or a number from 0 on."""
    if isinstance(default, bool | str):
        fine, kind = isinstance(value, type(default)), "true or false" if isinstance(default, bool) else "a word"
    elif isinstance(default, int):
        fine, kind = type(value) is int and value > 0, "a positive whole number"
    else:
        fine, kind = type(value) in (int, float) and value >= 0, "a number from 0 on"
    if not fine:
        raise UserError(f"{path}: {name} is {value!r}, expected {kind}; take a whole BLIP-2 checkpoint")


def _prefix(checkpoint: CheckpointSource, file_of: dict[str, str]) -> str:
    """What stands before every name: nothing on the hub, `model.` or the like for a model saved inside another."""
    found = [name.removesuffix("query_tokens") for name in file_of if f".{name}".endswith(".query_tokens")]
    if len(found) > 1:
        raise UserError(f"{checkpoint}: holds query_tokens under {len(found)} names, {found[0]}query_tokens and "
                        f"{found[1]}query_tokens; give a checkpoint of one model")
    return found[0] if found else ""


def _left_behind(checkpoint: CheckpointSource, names: Iterable[str]) -> dict[str, int]:
    """Part -> how many of these tensors it has. Raises UserError for any that the vision tower or Q-Former has more."""
    counts: Counter[str] = Counter()
    unknown = []
    for name in names:
        part, _, rest = name.partition(".")
        if part == "qformer" and _TEXT_BRANCH.match(rest):
            part = "qformer's text branch"
        elif part in ("vision_model", "qformer", "query_tokens"):
            unknown.append(name)
        counts[part] += 1
    if unknown:
        raise UserError(f"{checkpoint}: {len(unknown)} tensors have no place in the model, the first: "
                        f"{', '.join(unknown[:3])}; give a BLIP-2 checkpoint in transformers' layout")
    return dict(sorted(counts.items()))


def _require_all(checkpoint: CheckpointSource, wanted: dict[str, Tensor], held: dict) -> None:
    missing = [name for name in wanted if name not in held]
    if missing:
        raise UserError(f"{checkpoint}: {len(missing)} of {len(wanted)} tensors are missing, the first: "
                        f"{', '.join(missing[:3])}; give a whole BLIP-2 checkpoint in transformers' layout")


def _require_fit(checkpoint: CheckpointSource, wanted: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    wrong = [
        f"{name} is {tuple(stored[name].shape)} {stored[name].dtype}, expected {tuple(tensor.shape)} in floating point"
        for name, tensor in wanted.items()
        if stored[name].shape != tensor.shape or stored[name].dtype not in _STORED_DTYPES
    ]
    if wrong:
        raise UserError(f"{checkpoint}: {len(wrong)} of {len(wanted)} tensors do not fit, the first: "
                        f"{', '.join(wrong[:3])}; give the original BLIP-2 checkpoint")
