"""The files of a pretrained checkpoint, and tensors by name out of them; what is not asked for stays unopened.

A checkpoint is a folder, one weights file, or a repository on the Hugging Face hub; its weights are one file or shards
with an index, in safetensors or in PyTorch's own format.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import Tensor

from utils.errors import UserError, one_line

# In the order of preference; an index says which shard holds which tensor.
WEIGHT_FILES = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)
_PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint of which only those files are touched that are asked for; exactly one of folder and repo_id is set.

    flag and value are what the user gave, for messages; wanted_files says in words what belongs into a folder;
    weights_name is the weights file where the user named one.
    """

    flag: str
    value: str
    wanted_files: str
    folder: Path | None = None
    repo_id: str | None = None
    weights_name: str | None = None

    def first(self, *names: str) -> Path | None:
        """The first of these files that the checkpoint has, fetched from the hub if need be; None if it has none.

        Raises UserError when the hub cannot be asked.
        """
        if self.folder is not None:
            return next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        for name in names:
            cached = self.cached(name)
            if cached is not None:
                return cached
        for name in names:
            try:
                # One request without a second try: without network, the download itself retries for half a minute.
                get_hf_file_metadata(hf_hub_url(self.repo_id, name), timeout=_PROBE_TIMEOUT_S)
                return Path(hf_hub_download(self.repo_id, name))
            except RemoteEntryNotFoundError:
                continue
            except Exception as error:  # which HTTP client is below, and what it raises, changes with the version
                raise UserError(
                    f"{self}: {self.repo_id} is no folder here, {name} is not in the Hugging Face cache and cannot be "
                    f"fetched ({one_line(error)}); put {self.wanted_files} into a folder and give {self.flag} FOLDER"
                ) from error
        return None

    def those_of(self, *names: str) -> set[str]:
        """Those of these files that the checkpoint has, fetched from the hub if need be.

        Where the hub cannot be asked, those in its cache are taken for all, since it does not hold what the repository
        lacks; but only beside weights, which are fetched last. Raises UserError when the hub cannot be asked otherwise.
        """
        try:
            return {name for name in names if self.first(name) is not None}
        except UserError:
            cached = {name for name in names if self.cached(name) is not None}
            if not cached or not any(map(self.cached, WEIGHT_FILES)):
                raise
            return cached

    def cached(self, name: str) -> Path | None:
        """This file of a repository on the hub where it was fetched before; None if it was not."""
        found = try_to_load_from_cache(self.repo_id, name)
        return Path(found) if isinstance(found, str) else None

    def __str__(self) -> str:
        return f"{self.flag} {self.value}"


def find_checkpoint(flag: str, value: str, repo_id: str, wanted_files: str) -> CheckpointSource:
    """What the user's value of a flag means; repo_id is the value itself or what it is an alias of.

    Raises UserError when the value is neither a file, nor a folder, nor the form of a hub id.
    """
    path = Path(repo_id).expanduser()
    if path.is_dir():
        return CheckpointSource(flag, value, wanted_files, folder=path)
    if path.is_file():
        return CheckpointSource(flag, value, wanted_files, folder=path.parent, weights_name=path.name)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"{flag} {value}: no such file or folder; put {wanted_files} into a folder and give {flag} FOLDER"
        ) from error
    return CheckpointSource(flag, value, wanted_files, repo_id=repo_id)


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises UserError when there is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); fetch it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no JSON object; fetch it again")
    return values


def tensor_index(source: CheckpointSource) -> dict[str, str]:
    """Tensor name -> name of the file that holds it; no shard is opened where there is an index.

    Raises UserError when the checkpoint has no weights or they cannot be read.
    """
    path = source.first(source.weights_name) if source.weights_name else source.first(*WEIGHT_FILES)
    if path is None:
        raise UserError(f"{source}: has no weights, none of {', '.join(WEIGHT_FILES)}; "
                        f"put {source.wanted_files} into a folder and give {source.flag} FOLDER")
    if path.suffix != ".json":
        return dict.fromkeys(_tensor_names(path), path.name)
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{path}: holds no weight_map from tensors to files; fetch it again")
    return weight_map


def fetch_files(source: CheckpointSource, file_of: dict[str, str]) -> dict[str, Path]:
    """File name -> path of each file in file_of (tensor -> file). Raises UserError that names those not there."""
    names = sorted(set(file_of.values()))
    paths = {name: source.first(name) for name in names}
    missing = [name for name in names if paths[name] is None]
    if missing:
        raise UserError(f"{source}: {len(missing)} of the {len(names)} weight files needed are missing, "
                        f"{', '.join(missing[:5])}; fetch them into that folder")
    return paths


def map_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Those of `names` that a file holds, on the CPU, mapped: their bytes are read where they are used, no others.

    Raises UserError when the file is damaged or not a weights file.
    """
    if path.suffix != ".safetensors":
        tensors = _map_pickled(path)
        return {name: tensors[name] for name in names if name in tensors}
    try:
        with safe_open(path, framework="pt") as file:
            held = set(file.keys())
            return {name: file.get_tensor(name) for name in names if name in held}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _tensor_names(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return list(_map_pickled(path))
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _map_pickled(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged zip or pickle raises one of a dozen types
        raise _unreadable(path, error) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path}: holds something other than named tensors; give a checkpoint in Hugging Face's layout")
    return tensors


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a whole weights file ({one_line(error)}); fetch it again")
