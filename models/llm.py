"""The frozen language model: hidden states only, no vocabulary logits, gradient through to its inputs."""

# B batch, T tokens, D LLM width

import zlib

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaModel

from models.config import ModelConfig, RandomLLMConfig
from utils.errors import UserError


class FrozenLLM(nn.Module):
    """A decoder-only HF model whose weights never change and that stays in eval behaviour for ever."""

    def __init__(self, model: nn.Module, prompt_ids: list[int]):
        super().__init__()
        self.model = model
        model.requires_grad_(False)
        self.register_buffer("prompt_ids", torch.tensor(prompt_ids, dtype=torch.long), persistent=False)
        self.train()

    @property
    def hidden_size(self) -> int:
        return self.model.config.hidden_size

    @property
    def token_scale(self) -> float:
        """Root mean square of the token embeddings, the scale of what the LLM is used to read."""
        return self.model.get_input_embeddings().weight.float().square().mean().sqrt().item()

    def train(self, mode: bool = True) -> "FrozenLLM":
        return super().train(False)

    def prompt(self, batch: int) -> tuple[Tensor, Tensor]:
        """Prompt embeddings [B, L, D] and their validity bool [B, L]."""
        ids = self.prompt_ids.expand(batch, -1)
        return self.model.get_input_embeddings()(ids), torch.ones_like(ids, dtype=torch.bool)

    def forward(self, embeddings: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
        """Last hidden states [B, T, D] of embeddings [B, T, D].

        mask: bool [B, 1, T, T], True = may attend. position_ids: int64 [B, T].
        """
        dtype = self.model.get_input_embeddings().weight.dtype
        if self.model.config._attn_implementation == "eager":  # adds the mask instead of selecting by it
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return self.model(
            inputs_embeds=embeddings.to(dtype), attention_mask=mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state


def build_random_llama(config: RandomLLMConfig) -> LlamaModel:
    """A LLaMA whose frozen random weights are a function of config alone.

    They are drawn with standard deviation width^-0.5, which keeps the scale of activations; at HF's 0.02 a
    narrow network hardly passes anything on.
    """
    hf_config = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_size,
        initializer_range=config.hidden_size**-0.5,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaModel(hf_config)


def words_to_ids(prompt: str, vocab_size: int) -> list[int]:
    """Token ids for a random LLM, which has no tokenizer: one arbitrary but fixed id a word."""
    return [zlib.crc32(word.encode()) % vocab_size for word in prompt.split()]


def build_llm(config: ModelConfig) -> FrozenLLM | None:
    """The LLM that config.llm_path names: `random`, `none` (then None), a folder or a hub id.

    Raises UserError when the path holds no loadable model.
    """
    if config.llm_path == "none":
        return None
    if config.llm_path == "random":
        model = build_random_llama(config.random_llm)
        return FrozenLLM(model, words_to_ids(config.prompt, config.random_llm.vocab_size))
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.llm_path)
        model = AutoModel.from_pretrained(config.llm_path, attn_implementation="sdpa")
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--llm-path {config.llm_path}: no language model could be loaded ({reason[:300]}); "
            "give a folder with a Hugging Face model, `random` or `none`"
        ) from error
    return FrozenLLM(model, tokenizer(config.prompt).input_ids)
