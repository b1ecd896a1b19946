"""Tiny language models of several families, saved as the hub has them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

# `m`: transformers reads every qwen2 tokenizer as one of characters.
VOCABULARY = {"<unk>": 0, "<pad>": 1, "map": 2, "car": 3, "night": 4, "rain": 5, "m": 6}
FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "llama, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},  # SmolLM2
    "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gpt_neox": {},
}


def made_llm(family: str = "llama", **changes) -> PreTrainedModel:
    """A random model with its head; dropout is on in its settings and must never act."""
    model_type = family.partition(",")[0]
    values = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "max_position_embeddings": 512, "initializer_range": 0.2,
              "attention_dropout": 0.5, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = AutoConfig.for_model(model_type, **(values | FAMILIES[family] | changes))
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("norm.weight") or name.endswith("bias"):  # their first values would hide a mix-up
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save_tokenizer(folder: Path, pad_token: str | None = "<pad>", eos_token: str | None = None, extra: int = 0) -> None:
    """A tokenizer of whole words; `extra` makes its vocabulary larger."""
    vocabulary = VOCABULARY | {f"extra{i}": len(VOCABULARY) + i for i in range(extra)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token=pad_token, eos_token=eos_token
    ).save_pretrained(folder)


def save_bin(tensors: dict[str, Tensor], folder: Path, shards: int = 2) -> None:
    """PyTorch's own format in shards, as Vicuna is published."""
    names = list(tensors)
    file_of = {name: f"pytorch_model-{1 + i % shards:05d}-of-{shards:05d}.bin" for i, name in enumerate(names)}
    for file in set(file_of.values()):
        torch.save({name: tensors[name].clone() for name in names if file_of[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def save_llm(folder: Path, model: PreTrainedModel, form: str = "safetensors") -> Path:
    """The folder with settings, tokenizer and weights; form: safetensors | bin."""
    if form == "safetensors":
        model.save_pretrained(folder, max_shard_size="20KB")
    else:
        model.config.save_pretrained(folder)
        save_bin(model.state_dict(), folder)
    save_tokenizer(folder)
    return folder
