import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, Blip2Config, BloomConfig, CLIPConfig, JambaConfig, T5Config

from models.llm.files import find_llm, load_tokenizer, require_packages
from models.llm.frozen import build_llm
from tests.made_hub import hub_of, point_client_at
from tests.made_llm import made_llm, save_llm, save_tokenizer
from tests.micro import micro_config
from utils.errors import UserError

SENTENCEPIECE = Path(__file__).resolve().parents[2] / "shared/reference/tokenizer/llama_tokenizer.model"


@pytest.fixture
def folder(tmp_path):
    return save_llm(tmp_path / "llm", made_llm())


def refused(llm_path, match, **changes):
    """The error is one line that names the path; returns it."""
    with pytest.raises(UserError, match=match) as caught:
        build_llm(micro_config(llm_path=str(llm_path), prompt="map of a car", **changes))
    message = str(caught.value)
    assert "\n" not in message and str(llm_path) in message, message
    return message


def no_weights(folder):
    for file in folder.glob("model*"):
        file.unlink()


def test_what_is_not_there_is_named_before_weights_are_read(folder, tmp_path):
    refused(tmp_path / "nowhere", "no such file or folder")
    no_weights(folder)
    message = refused(folder, "has no weights")
    assert "model.safetensors" in message and "pytorch_model.bin" in message
    (folder / "tokenizer_config.json").unlink()
    refused(folder, "has no tokenizer_config.json")
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer.json and no tokenizer.model")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json: cannot be read")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json; put config.json, tokenizer_config.json")


def test_a_hub_id_without_network_says_what_to_fetch(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("models.tensor_files.get_hf_file_metadata", offline)
    message = refused("nobody/no-such-llm", "no route to host")
    assert "tokenizer.model" in message and "pytorch_model*.bin" in message and "--llm-path FOLDER" in message


def test_a_hub_id_in_the_cache_needs_no_network(folder, tmp_path, monkeypatch):
    """What the repository lacks is in no cache: here of Vicuna's files tokenizer.model, vocab.json and merges.txt."""
    config = micro_config(llm_path="some/model", prompt="map of a car")
    with hub_of(folder, tmp_path / "cache", monkeypatch):
        tokens = build_llm(config).prompt([""])[0]
    point_client_at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    for offline in (True, False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        assert torch.equal(build_llm(config).prompt([""])[0], tokens)
    for file in (tmp_path / "cache").rglob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="some/model is no folder here, tokenizer_config.json is not in the"):
        build_llm(config)


@pytest.mark.parametrize(
    "config, kind",
    [(T5Config(), "t5"), (BertConfig(), "bert.*an encoder;"), (CLIPConfig(), "clip"), (Blip2Config(), "blip-2"),
     (BloomConfig(), "bloom.*position ids do not bind it"), (JambaConfig(), "jamba.*attention mask does not bind it")],
)
def test_other_architectures_are_refused_by_name(config, kind, folder):
    config.save_pretrained(folder)
    refused(folder, f"model_type is '{kind}.*expected a decoder-only language model such as llama")


def test_settings_that_lead_elsewhere_are_refused(folder):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    refused(folder, "already quantised")
    path.write_text(json.dumps(values | {"num_attention_heads": "many"}))
    refused(folder, "config.json: settings cannot be read")
    path.write_text(json.dumps({name: values[name] for name in values if name != "model_type"}))
    refused(folder, "names no model_type")


def test_a_prompt_that_does_not_fit_is_refused_before_weights_are_read(folder):
    no_weights(folder)
    room = 512 - 1
    with pytest.raises(UserError, match=f"{room + 1} tokens, the LLM's context leaves {room} .*shorten it"):
        build_llm(micro_config(llm_path=str(folder), prompt="map " * (room + 1)))


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(folder):
    save_tokenizer(folder, extra=60)
    refused(folder, "its tokenizer has 67 tokens, its embedding 64")


def test_without_a_pad_token_eos_pads_and_says_so(folder, caplog):
    save_tokenizer(folder, pad_token=None, eos_token="rain")
    with caplog.at_level(logging.WARNING):
        llm = build_llm(micro_config(llm_path=str(folder), prompt="map of a car"))
    assert "no pad token, eos fills up" in caplog.text
    ids, valid = llm.text.batch(["", "night"], llm.model.embed_tokens.weight.device)
    assert ids.tolist() == [[2, 0, 0, 3, 5], [2, 0, 0, 3, 4]] and valid.tolist()[0] == [True] * 4 + [False]
    save_tokenizer(folder, pad_token=None)
    refused(folder, "neither a pad nor an eos token")


def test_a_damaged_tokenizer_is_one_line(folder):
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, "its tokenizer cannot be read")


@pytest.fixture
def vicuna_like(folder):
    """A tokenizer as Vicuna v1.5 ships it: a sentencepiece model and its settings."""
    if not SENTENCEPIECE.exists():
        pytest.skip(f"{SENTENCEPIECE.name} is not at hand")
    (folder / "tokenizer.json").unlink()
    shutil.copy(SENTENCEPIECE, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>", "model_max_length": 4096,
    }))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 32000}))
    return folder


def test_sentencepiece_tokens_are_those_of_sentencepiece_itself(vicuna_like):
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    text = "Six cameras of a car see, in this order: front, front right. Rain; 23:10."
    expected = sentencepiece.SentencePieceProcessor(model_file=str(SENTENCEPIECE)).encode(text)
    tokenizer = load_tokenizer(find_llm(str(vicuna_like)))
    assert tokenizer(text).input_ids == [1, *expected], "after <s>"


@pytest.mark.parametrize("module, name", [("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")])
def test_a_sentencepiece_tokenizer_names_the_package_it_needs(module, name, vicuna_like, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    refused(vicuna_like, f"tokenizer.model: .*pip install {name}$")


def test_optional_packages_are_named(folder, monkeypatch):
    for module in ("gguf", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, module, None)
    (folder / "model.gguf").write_bytes(b"GGUF")
    refused(folder / "model.gguf", "pip install gguf$")
    with pytest.raises(UserError, match="--llm-quantization nf4: .*pip install bitsandbytes$"):
        build_llm(micro_config(llm_quantization="nf4"))
    with pytest.raises(UserError, match="pip install no-such-a no.such.b$"):
        require_packages("x", "no-such-a", "no.such.b")
