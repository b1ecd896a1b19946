"""A LLaMA with random weights, which needs no file: toys that train in minutes, and the 7B shape for benchmarks."""

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

from models.config import RandomLLMConfig

# Models up to this many parameters are drawn on the CPU, the same on all machines; larger ones where they live.
_DRAWN_ON_CPU = 100_000_000


def random_llama_config(config: RandomLLMConfig) -> LlamaConfig:
    """Hugging Face's settings of a random LLaMA.

    Its weights are drawn with standard deviation width^-0.5, which keeps the scale of activations; at HF's 0.02 a
    narrow network hardly passes anything on.
    """
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_size,
        initializer_range=config.hidden_size**-0.5,
        attn_implementation="sdpa",
    )


def build_random_llama(config: RandomLLMConfig) -> LlamaModel:
    """A float32 LLaMA on the CPU whose random weights are a function of config alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaModel(random_llama_config(config))


def random_weights(
    model: PreTrainedModel, config: RandomLLMConfig, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every weight of a random LLaMA.

    A small one's are build_random_llama's. A large one's are drawn on the device in dtype, which takes seconds, and
    are a function of config, the kind of device and dtype.
    """
    if sum(parameter.numel() for parameter in model.parameters()) <= _DRAWN_ON_CPU:
        for name, parameter in build_random_llama(config).named_parameters():
            yield name, parameter.detach().to(device, dtype)
        return
    generator = torch.Generator(device).manual_seed(config.seed)
    for name, parameter in model.named_parameters():
        weight = torch.empty(parameter.shape, device=device, dtype=dtype)
        is_norm = weight.dim() == 1
        yield name, weight.fill_(1) if is_norm else weight.normal_(0, config.hidden_size**-0.5, generator=generator)


def words_to_ids(prompt: str, vocab_size: int) -> list[int]:
    """Token ids for a random LLM, which has no tokenizer: one arbitrary but fixed id a word."""
    return [zlib.crc32(word.encode()) % vocab_size for word in prompt.split()]
