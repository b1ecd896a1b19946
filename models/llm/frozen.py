"""The frozen language model: hidden states only, no vocabulary logits, gradient through to its inputs."""

# B batch, T tokens, D LLM width

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from models.attention_mask import added_mask, block_mask
from models.config import ModelConfig
from models.llm.files import FLAG, LLMFiles, find_llm, first_layers, load_tokenizer, require_packages
from models.llm.gguf import gguf_weights
from models.llm.lora import add_lora
from models.llm.prompt import Prompt
from models.llm.quantization import quantize_linears
from models.llm.random_llama import random_llama_config, random_weights, words_to_ids
from models.llm.weights import checkpoint_weights, empty_model, fill
from utils.errors import UserError

# float32 weights and gradients, and the two moments of Adam.
_BYTES_PER_TRAINED_PARAMETER = 16


class FrozenLLM(nn.Module):
    """A decoder-only HF model whose weights never change and that stays in eval behaviour for ever.

    Only what build_llm adds or frees on request (LoRA, --unfreeze-llm) trains, in eval behaviour too.
    """

    def __init__(self, model: nn.Module, prompt: Prompt):
        super().__init__()
        self.model = model
        self.text = prompt
        model.requires_grad_(False)
        self.train()

    @property
    def hidden_size(self) -> int:
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where it takes its inputs."""
        return self.model.get_input_embeddings().weight.device

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, first to last. Raises UserError for a model whose layers are unknown here."""
        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise UserError(f"{FLAG}: the layers of a {self.model.config.model_type} model are unknown here; take a "
                            "llama, mistral, qwen2 or qwen3 model, or leave out --gradient-checkpointing, --shard-llm "
                            "and --compile")
        return layers

    @property
    def token_scale(self) -> float:
        """Root mean square of the token embeddings, the scale of what the LLM is used to read."""
        weight = self.model.get_input_embeddings().weight.detach()
        if weight.is_meta:
            return self.hidden_size**-0.5
        # In pieces: a float32 copy of a large vocabulary is a good part of a small model.
        return (sum(rows.float().square().sum() for rows in weight.split(1024)) / weight.numel()).sqrt().item()

    def train(self, mode: bool = True) -> "FrozenLLM":
        return super().train(False)

    def prompt(self, contexts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompt embeddings [B, L, D] and their validity bool [B, L]; contexts: B texts that follow it, `` for none."""
        embeddings = self.model.get_input_embeddings()
        ids, valid = self.text.batch(contexts, self.device)
        return embeddings(ids), valid

    def checkpoint_layers(self) -> None:
        """From now on keep only each layer's input, and compute the layer again in the backward pass.

        Hugging Face's own switch works in train mode only, which would bring dropout. There is none here, so that the
        second computation needs no random state.
        """
        for layer in self.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    def forward(self, embeddings: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
        """Last hidden states [B, T, D] of embeddings [B, T, D].

        mask: bool [B, 1, T, T], True = may attend. position_ids: int64 [B, T].
        """
        dtype = self.model.get_input_embeddings().weight.dtype
        flex = self.model.config._attn_implementation == "flex_attention"
        attention_mask = block_mask(mask) if flex else added_mask(mask, dtype)
        return self.model(
            inputs_embeds=embeddings.to(dtype), attention_mask=attention_mask, position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state  # fmt: skip


def build_llm(
    config: ModelConfig, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> FrozenLLM | None:
    """The LLM that config.llm_path names: `random`, `none` (then None), a folder, a .gguf file or a hub id.

    It is read straight onto the device (None: torch's default) in dtype, or in float32 where config.unfreeze_llm
    trains it; on the meta device it has shapes only. Raises UserError, before any weight is read, when the path holds
    no such model, something of it is missing or does not fit, the prompt is too long, or an optional package is needed.
    """
    if config.llm_path == "none":
        return None
    device = device or torch.get_default_device()
    if config.llm_quantization != "none":
        require_packages(f"--llm-quantization {config.llm_quantization}", "bitsandbytes")
    files = None if config.llm_path == "random" else find_llm(config.llm_path)
    whole = files.config if files else random_llama_config(config.random_llm)
    hf_config = first_layers(config.llm_path, whole, config.llm_layers)
    left_out = range(hf_config.num_hidden_layers, whole.num_hidden_layers)
    prompt = _build_prompt(config, files, hf_config.max_position_embeddings)
    # On the CPU there is no backward pass of flex attention; on the meta device nothing attends.
    flex = config.llm_attention == "flex" and device.type == "cuda"
    model = empty_model(f"{FLAG} {config.llm_path}", hf_config, "flex_attention" if flex else "sdpa")
    dtype = torch.float32 if config.unfreeze_llm else dtype
    if config.llm_quantization != "none":
        quantize_linears(model, config.llm_quantization, dtype)
    if device.type != "meta":
        if files is None:
            weights = random_weights(model, config.random_llm, device, dtype)
        elif files.gguf_name:
            weights = gguf_weights(model, files.folder / files.gguf_name, device, dtype, left_out)
        else:
            weights = checkpoint_weights(model, files.source, device, dtype, left_out)
        fill(model, weights, device)
    elif config.llm_quantization == "none":
        model.to(dtype)
    llm = FrozenLLM(model, prompt)
    if config.unfreeze_llm:
        model.requires_grad_(True)
    if config.lora_rank:
        add_lora(model, config.lora_rank, config.lora_alpha)
    if config.llm_checkpointing:
        llm.checkpoint_layers()
    return llm


def _build_prompt(config: ModelConfig, files: LLMFiles | None, max_positions: int) -> Prompt:
    max_tokens = max_positions - 1  # scene tokens and map queries share one position
    if files is None:
        return Prompt(config.prompt, partial(words_to_ids, vocab_size=config.random_llm.vocab_size), 0, max_tokens)
    tokenizer = load_tokenizer(files)
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        pad_id = tokenizer.eos_token_id
        if pad_id is None:
            raise UserError(f"{files.source}: its tokenizer has neither a pad nor an eos token; name one in its "
                            "tokenizer_config.json, such as \"pad_token\": \"<unk>\"")
        logging.getLogger(__name__).warning(
            "%s: its tokenizer has no pad token, eos fills up shorter prompts (and is masked)", files.source
        )
    return Prompt(config.prompt, lambda text: tokenizer(text).input_ids, pad_id, max_tokens)


def check_unfreezing(config: ModelConfig, confirmed: bool) -> None:
    """Raise UserError that says what memory it takes when config.unfreeze_llm is set and not confirmed."""
    if not config.unfreeze_llm or confirmed:
        return
    is_random = config.llm_path == "random"
    hf_config = random_llama_config(config.random_llm) if is_random else find_llm(config.llm_path).config
    hf_config = first_layers(config.llm_path, hf_config, config.llm_layers)
    count = sum(p.numel() for p in empty_model(f"{FLAG} {config.llm_path}", hf_config).parameters())
    raise UserError(
        f"--unfreeze-llm: training all {count / 1e9:.2f} G parameters of {config.llm_path} takes "
        f"{count * _BYTES_PER_TRAINED_PARAMETER / 1e9:.1f} GB for float32 weights ({count * 4 / 1e9:.1f}), gradients "
        f"({count * 4 / 1e9:.1f}) and Adam's states ({count * 8 / 1e9:.1f}) on every GPU, and checkpoints of "
        f"{count * 12 / 1e9:.1f} GB, where the frozen model in half precision takes {count * 2 / 1e9:.1f}; "
        "--lora-rank 16 is the small way, --confirm-unfreeze-llm goes on"
    )
