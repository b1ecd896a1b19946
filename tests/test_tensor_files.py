import json
import resource
import shutil
import struct
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, Blip2Model

from models.blip2_checkpoint import blip2_config, load_blip2
from tests.made_blip2 import fresh_modules, language_shards, loaded, random_blip2, save_bin
from tests.made_hub import Hub, hub_of, point_client_at
from utils.errors import UserError


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict:
    """The same model in shards of both kinds: safetensors and bin -> folder, and the model itself."""
    root = tmp_path_factory.mktemp("blip2")
    model = random_blip2(Blip2ForConditionalGeneration)
    model.save_pretrained(root / "safetensors", max_shard_size="60KB")
    save_bin(model, root / "bin", num_shards=6)
    return {"model": model, "safetensors": root / "safetensors", "bin": root / "bin"}


@pytest.fixture(params=["safetensors", "bin"])
def folder(checkpoints, tmp_path, request) -> Path:
    """A copy to spoil."""
    return shutil.copytree(checkpoints[request.param], tmp_path / "checkpoint")


def needed_shard(folder: Path) -> Path:
    """The shard with the query tokens."""
    index = json.loads(next(folder.glob("*.index.json")).read_text())
    return folder / index["weight_map"]["query_tokens"]


def test_the_language_models_files_are_never_opened(checkpoints, folder):
    first, *others = language_shards(folder)
    first.write_bytes(b"garbage")
    for shard in others:
        shard.unlink()
    reference = checkpoints["model"]
    vision, qformer = loaded(folder)
    assert torch.equal(qformer.query_tokens, reference.query_tokens)
    for ours, theirs in ((vision.model, reference.vision_model), (qformer.model, reference.qformer)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def save_safetensors_with_a_hole(state: dict[str, Tensor], hole: Tensor, path: Path) -> None:
    """A file in which `hole` comes first and takes no place on the disk."""
    header, end = {}, 0
    for name, tensor in {"language_model.weight": hole, **state}.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": {torch.float16: "F16", torch.float32: "F32"}[tensor.dtype],
                        "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.seek(hole.nbytes, 1)
        for tensor in state.values():
            file.write(tensor.numpy().tobytes())


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_language_model_in_the_same_file_costs_neither_memory_nor_time(tmp_path, file):
    model = random_blip2(Blip2Model)
    model.config.save_pretrained(tmp_path)
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("language_")}
    hole = torch.empty(2**32, dtype=torch.float16)  # 8 GiB that nothing ever touches
    if file.endswith(".safetensors"):
        save_safetensors_with_a_hole(state, hole, tmp_path / file)
    else:
        with torch.serialization.skip_data():  # every tensor becomes a hole, which reads as zeros
            torch.save({"language_model.weight": hole, **state}, tmp_path / file)
    modules = fresh_modules(tmp_path)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    report = load_blip2(*modules, str(tmp_path))
    assert time.perf_counter() - start < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert report.left_behind == {"language_model": 1}
    expected = model.query_tokens * file.endswith(".safetensors")
    assert torch.equal(modules[1].query_tokens, expected)


def test_a_single_file_is_read_with_the_config_beside_it(tmp_path):
    model = random_blip2(Blip2Model)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "vision_and_qformer.safetensors")
    _, qformer = loaded(tmp_path / "vision_and_qformer.safetensors")
    assert torch.equal(qformer.query_tokens, model.query_tokens)


def one_line_error(folder: Path, modules: tuple) -> str:
    with pytest.raises(UserError) as caught:
        load_blip2(*modules, str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", ["half of it", "version https://git-lfs.github.com/spec/v1", ""])
def test_a_damaged_file_is_named(folder, content):
    modules = fresh_modules(folder)
    shard = needed_shard(folder)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2] if content == "half of it" else content.encode())
    error = one_line_error(folder, modules)
    assert error.startswith(f"{shard}: not a whole weights file (") and error.endswith("fetch it again")


def test_a_missing_shard_is_named(folder):
    modules = fresh_modules(folder)
    shard = needed_shard(folder)
    shard.unlink()
    error = one_line_error(folder, modules)
    assert str(folder) in error and "1 of the" in error and shard.name in error


def test_a_pickle_of_other_things_is_not_run(folder):
    modules = fresh_modules(folder)
    for weights in folder.glob("*model*"):
        weights.unlink()
    torch.save({"query_tokens": Path("anything")}, folder / "pytorch_model.bin")
    assert f"{folder / 'pytorch_model.bin'}: not a whole weights file" in one_line_error(folder, modules)


def test_an_index_that_is_none_or_lies_is_named(folder):
    modules = fresh_modules(folder)
    index, = folder.glob("*.index.json")
    whole = json.loads(index.read_text())
    language_shard = language_shards(folder)[0].name
    lying = {"weight_map": whole["weight_map"] | {"query_tokens": language_shard}}
    for content, message in (("{", "cannot be read"), ("[]", "holds no JSON object"), ("{}", "holds no weight_map"),
                             (json.dumps(lying), "1 of 101 tensors are missing, the first: query_tokens")):
        index.write_text(content)
        assert message in one_line_error(folder, modules)


def test_a_folder_without_weights_or_config_and_a_path_to_nothing_say_what_belongs_there(folder):
    modules = fresh_modules(folder)
    for weights in folder.glob("*model*"):
        weights.unlink()
    assert "has no weights, none of model.safetensors.index.json, model.safetensors" in one_line_error(folder, modules)
    (folder / "config.json").unlink()
    assert "has no config.json; put config.json and model.safetensors" in one_line_error(folder, modules)
    assert "no such file or folder; put config.json and" in one_line_error(folder / "nowhere", modules)


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    with hub_of(folder, tmp_path / "cache", monkeypatch) as server:
        yield server


def test_of_a_hub_id_only_the_needed_shards_are_fetched_and_only_once(checkpoints, folder, hub):
    modules = fresh_modules(folder)
    report = load_blip2(*modules, "some/model")
    assert torch.equal(modules[1].query_tokens, checkpoints["model"].query_tokens)
    index, = folder.glob("*.index.json")
    assert sorted(Hub.sent) == sorted({"config.json", index.name, *report.files})
    assert not {shard.name for shard in language_shards(folder)} & set(Hub.sent)
    hub.shutdown()
    assert load_blip2(*modules, "some/model") == report, "from the cache, without network"


def test_a_hub_id_that_is_not_there_is_one_line(hub):
    with pytest.raises(UserError, match="other/model is no folder here, config.json is not in the Hugging Face cache"):
        blip2_config("other/model")


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_a_hub_id_fails_at_once_and_says_what_to_fetch(tmp_path, monkeypatch, offline):
    point_client_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        blip2_config("blip2")
    assert time.perf_counter() - start < 2.0
    error = str(caught.value)
    assert error.startswith("--qformer-pretrained blip2: Salesforce/blip2-opt-2.7b is no folder here")
    assert "config.json and model.safetensors" in error and "--qformer-pretrained FOLDER" in error
    assert "\n" not in error
