"""Whether pretrained weights are there or can be had; nothing is fetched."""

import threading
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

from models.blip2_checkpoint import ALIASES
from models.blip2_checkpoint import FLAG as BLIP2_FLAG
from models.llm.files import FLAG as LLM_FLAG
from models.llm.files import require_packages
from models.tensor_files import WEIGHT_FILES, CheckpointSource, fetch_files, find_checkpoint, read_json, tensor_index
from utils.errors import UserError, one_line

_WANTED_FILES = "config.json and the weights with their index.json"
_TIMEOUT_S = 5.0  # of the request
_LONGEST_S = 10.0  # of all, since looking up a name has no timeout of its own


def check_llm_weights(llm_path: str) -> str:
    """Where --llm-path leads. Raises UserError when its files are neither there nor can be fetched."""
    if llm_path in ("none", "random"):
        return f"none to load ({LLM_FLAG} {llm_path})"
    source = find_checkpoint(LLM_FLAG, llm_path, llm_path, _WANTED_FILES)
    if source.weights_name and source.weights_name.endswith(".gguf"):
        require_packages(str(source), "gguf")
        return f"{llm_path}: the file is there"
    return _check_source(source, without="")


def check_blip2_weights(qformer_pretrained: str) -> str:
    """Where --qformer-pretrained leads, the language model left out. Raises UserError as check_llm_weights."""
    if qformer_pretrained == "none":
        return f"none to load ({BLIP2_FLAG} none)"
    repo_id = ALIASES.get(qformer_pretrained, qformer_pretrained)
    return _check_source(find_checkpoint(BLIP2_FLAG, qformer_pretrained, repo_id, _WANTED_FILES), "language_model.")


def _check_source(source: CheckpointSource, without: str) -> str:
    """`without`: the weight files that hold only tensors with this in their name are not needed."""
    if source.folder is not None:
        if source.first("config.json") is None:
            raise UserError(f"{source}: has no config.json; put {_WANTED_FILES} into a folder and give "
                            f"{source.flag} FOLDER")
        files = fetch_files(source, _needed(tensor_index(source), without))
        return f"{source.folder}: {len(files)} weight files, {_gigabytes(files.values())}"
    cached = _cached_weights(source, without)
    if cached:
        return f"{source.repo_id}: in the Hugging Face cache, {_gigabytes(cached)}"
    failure = _failure_to_reach(source.repo_id)
    if failure:
        raise UserError(
            f"{source}: {source.repo_id} is no folder here, not in the Hugging Face cache and cannot be fetched "
            f"({failure}); where there is a network: hf download {source.repo_id} --local-dir FOLDER, then give "
            f"{source.flag} FOLDER"
        )
    return f"{source.repo_id}: the hub answers; what is needed is fetched into {constants.HF_HUB_CACHE} with the model"


def _needed(file_of: Mapping[str, str], without: str) -> dict[str, str]:
    return {name: file for name, file in file_of.items() if not without or without not in name}


def _cached_weights(source: CheckpointSource, without: str) -> list[Path]:
    """The weight files of a hub's repository when all that are needed are cached, otherwise none."""
    if source.cached("config.json") is None:
        return []
    for name in WEIGHT_FILES:
        path = source.cached(name)
        if path is not None:
            names = set(_needed(read_json(path)["weight_map"], without).values()) if path.suffix == ".json" else {name}
            paths = [source.cached(each) for each in sorted(names)]
            return paths if all(paths) else []
    return []


def _failure_to_reach(repo_id: str) -> str:
    """Why the hub does not give this repository's config.json; empty when it does."""
    failures = [f"no answer in {_LONGEST_S:g} s"]

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repo_id, "config.json"), timeout=_TIMEOUT_S)
            failures[0] = ""
        except Exception as error:  # which HTTP client is below, and what it raises, changes with the version
            failures[0] = one_line(error) or type(error).__name__

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_LONGEST_S)
    return failures[0]


def _gigabytes(paths) -> str:
    return f"{sum(path.stat().st_size for path in paths) / 1e9:.2f} GB"
