"""A LLaMA with random weights, which needs no file: toys that train in minutes, and the 7B shape for benchmarks."""

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

from models.config import RandomLLMConfig

# Models up to this many parameters are drawn on the CPU, the same on all machines; larger ones where they live.
_DRAWN_ON_CPU = 100_000_000
# Keys are made as queries are, and both are this many times as large as the rest: then a head attends to what is like
# the query, as heads of trained models do. With independent keys and queries every token looks at all alike, which no
# trained model does, and what is trained in front of it learns for long next to nothing.
LIKENESS = 1.5


def random_llama_config(config: RandomLLMConfig) -> LlamaConfig:
    """Hugging Face's settings of a random LLaMA.

    Its weights are drawn with standard deviation width^-0.5, which keeps the scale of activations; at HF's 0.02 a
    narrow network hardly passes anything on.
    Its heads look for what is alike: see LIKENESS.
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
        model = LlamaModel(random_llama_config(config))
    with torch.no_grad():
        for layer in model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.copy_(attention.q_proj.weight.mul_(LIKENESS))
    return model


def random_weights(
    model: PreTrainedModel, config: RandomLLMConfig, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every weight of a random LLaMA.

    A small one's are build_random_llama's, of its first layers where it has no more. A large one's are drawn on the
    device in dtype, which takes seconds, and are a function of config, the kind of device and dtype.
    """
    if sum(parameter.numel() for parameter in model.parameters()) <= _DRAWN_ON_CPU:
        wanted = {name for name, _ in model.named_parameters()}
        for name, parameter in build_random_llama(config).named_parameters():
            if name in wanted:
                yield name, parameter.detach().to(device, dtype)
        return
    generator = torch.Generator(device).manual_seed(config.seed)
    last_query = None  # in each layer the queries' weights come right before the keys'
    for name, parameter in model.named_parameters():
        weight = torch.empty(parameter.shape, device=device, dtype=dtype)
        if weight.dim() == 1:
            weight.fill_(1)  # a norm
        elif ".k_proj." in name:
            weight.copy_(last_query)
        else:
            is_query = ".q_proj." in name
            scale = config.hidden_size**-0.5 * (LIKENESS if is_query else 1.0)
            weight.normal_(0, scale, generator=generator)
            last_query = weight if is_query else last_query
        yield name, weight


def words_to_ids(prompt: str, vocab_size: int) -> list[int]:
    """Token ids for a random LLM, which has no tokenizer: one arbitrary but fixed id a word."""
    return [zlib.crc32(word.encode()) % vocab_size for word in prompt.split()]
