"""training/weight_checks.py: what is missing of pretrained weights is named, and nothing is fetched to find out."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import tensor_files
from training import weight_checks
from training.weight_checks import check_blip2_weights, check_llm_weights
from utils.errors import UserError


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a check has fetched something")

    for name in ("hf_hub_download", "get_hf_file_metadata"):
        monkeypatch.setattr(tensor_files, name, refuse)
    monkeypatch.setattr(tensor_files, "try_to_load_from_cache", lambda *_: None)


def sharded(folder: Path, *missing: str) -> Path:
    """A checkpoint of two shards, one of them the language model's, without the files that are `missing`."""
    folder.mkdir()
    shards = {"qformer.weight": "model-1.safetensors", "language_model.weight": "model-2.safetensors"}
    for tensor, name in shards.items():
        save_file({tensor: torch.zeros(3)}, folder / name)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for name in missing:
        (folder / name).unlink()
    return folder


def test_a_whole_folder_passes(tmp_path):
    assert "2 weight files" in check_llm_weights(str(sharded(tmp_path / "whole")))


def test_no_weights_are_needed_where_none_are_loaded():
    assert "none to load" in check_llm_weights("random") and "none to load" in check_blip2_weights("none")


def test_what_a_folder_lacks_is_named(tmp_path):
    for number, (name, words) in enumerate([
        ("config.json", "has no config.json; put .* give --llm-path FOLDER"),
        ("model.safetensors.index.json", "has no weights, .* give --llm-path FOLDER"),
        ("model-2.safetensors", "model-2.safetensors; fetch"),
    ]):
        with pytest.raises(UserError, match=words):
            check_llm_weights(str(sharded(tmp_path / str(number), name)))


def test_blip2_needs_no_language_model(tmp_path):
    assert "1 weight files" in check_blip2_weights(str(sharded(tmp_path / "a", "model-2.safetensors")))
    with pytest.raises(UserError, match="model-1.safetensors; fetch"):
        check_blip2_weights(str(sharded(tmp_path / "b", "model-1.safetensors")))


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match=r"--llm-path models/no/such\.gguf: no such file or folder"):
        check_llm_weights("models/no/such.gguf")


def test_the_cache_of_the_hub_is_found_without_a_network(tmp_path, monkeypatch):
    folder = sharded(tmp_path / "cached")

    def cached(_: str, name: str) -> str | None:
        return str(folder / name) if (folder / name).exists() else None

    monkeypatch.setattr(tensor_files, "try_to_load_from_cache", cached)
    monkeypatch.setattr(weight_checks, "get_hf_file_metadata", lambda *_, **__: pytest.fail("the network was asked"))
    assert "in the Hugging Face cache" in check_llm_weights("someone/model")
    (folder / "model-2.safetensors").unlink()
    assert "in the Hugging Face cache" in check_blip2_weights("blip2")
    monkeypatch.setattr(weight_checks, "get_hf_file_metadata", lambda *_, **__: None)
    assert "the hub answers" in check_llm_weights("someone/model"), "a shard is missing"


def test_a_hub_that_cannot_be_reached(monkeypatch):
    def fail(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(weight_checks, "get_hf_file_metadata", fail)
    with pytest.raises(UserError, match=r"not known.*hf download lmsys/vicuna-7b-v1\.5 .* give --llm-path FOLDER"):
        check_llm_weights("lmsys/vicuna-7b-v1.5")
    with pytest.raises(UserError, match=r"hf download Salesforce/blip2-opt-2\.7b .* give --qformer-pretrained FOLDER"):
        check_blip2_weights("blip2")


def test_a_network_that_never_answers_does_not_hang(monkeypatch):
    monkeypatch.setattr(weight_checks, "_LONGEST_S", 0.2)
    monkeypatch.setattr(weight_checks, "get_hf_file_metadata", lambda *_, **__: time.sleep(3))
    start = time.monotonic()
    with pytest.raises(UserError, match="no answer in 0.2 s"):
        check_llm_weights("someone/model")
    assert time.monotonic() - start < 2
