"""One layer of the LLM under the map queries' mask, forward and backward: ways to attend, and their share of the layer.

The share that attention itself has of a layer bounds what any other way to attend can save. The limit beside it is the
same attention without a mask. Flex attention, which skips blocks of 128 x 128 tokens that nobody may attend to, is
timed on a CUDA device alone: on a CPU it has no backward pass.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from models.attention_mask import added_mask, block_mask, map_attention_mask, map_position_ids
from models.compilation import missing_for_compiling
from models.config import ModelConfig
from models.detector import build_detector
from models.llm.frozen import FrozenLLM, build_llm
from tools.benchmarks.common import rounds, spread
from tools.benchmarks.full_model import add_model_arguments, config_from
from utils.device import PRECISIONS, default_device, default_precision
from utils.errors import UserError
from utils.frame import CAMERAS

TITLES = {
    "layer_ms": "a layer, SDPA", "eager_layer_ms": "a layer, eager", "flex_layer_ms": "a layer, flex",
    "masked_ms": "SDPA alone, masked", "unmasked_ms": "SDPA alone, no mask",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)


def run(args: argparse.Namespace) -> dict:
    """Measure and print; returns the figures, times in milliseconds."""
    if min(args.batch_size, args.repeats) < 1 or args.warmup < 0:
        raise UserError("--batch-size, --repeats: expected at least 1; --warmup: at least 0")
    config = config_from(args)
    if config.llm_path == "none":
        raise UserError("--llm-path none: there is no LLM that could attend; name one, or random")
    device, precision = default_device(), args.precision or default_precision(torch.cuda.is_available())
    llm = build_llm(replace(config, llm_layers=1), device, PRECISIONS[precision])
    mask, position_ids = llm_input(config, llm, args.batch_size)
    seconds, ratios = rounds(works(llm, mask, position_ids), args.warmup, args.repeats)
    found: dict = {name: spread(1e3 * values) for name, values in seconds.items()}
    found |= {
        "precision": precision,
        "tokens": mask.shape[-1],
        "allowed_pairs": mask.float().mean().item(),
        "empty_blocks": block_mask(mask).sparsity() / 100,
        "share_of_layer": ratios("masked_ms", "layer_ms"),
        "masked_ratio": ratios("masked_ms", "unmasked_ms"),
        **{name.replace("_ms", "_ratio"): ratios(name, "layer_ms") for name in seconds if name.endswith("_layer_ms")},
    }
    print(format_result(found, args.batch_size, device))
    return found


def llm_input(config: ModelConfig, llm: FrozenLLM, batch_size: int) -> tuple[Tensor, Tensor]:
    """The detector's mask [B, 1, T, T] and position ids [B, T] for this LLM, with a prompt without context."""
    _, valid = llm.prompt([""] * batch_size)
    num_scene = build_detector(config, "meta").num_ground_tokens
    if "qformer" not in config.without:
        num_scene += config.qformer.num_query_tokens * len(CAMERAS)
    shape = (num_scene, config.num_instances, config.num_points)
    return map_attention_mask(valid, *shape, "causal_prefix" not in config.without), map_position_ids(valid, *shape)


def works(llm: FrozenLLM, mask: Tensor, position_ids: Tensor) -> dict[str, Callable[[], None]]:
    """Forward and backward passes to time: whole layers, and the attention inside alone with and without the mask.

    Masks are made beforehand, as the model makes them once for all layers. Flex attention is left out where the LLM
    cannot attend by it, and on machines that cannot compile it or have no GPU.
    """
    settings, dtype = llm.model.config, llm.model.get_input_embeddings().weight.dtype
    batch, total = position_ids.shape
    heads = settings.num_attention_heads
    head_dim = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    added = added_mask(mask, dtype)
    embeddings = torch.randn(batch, total, llm.hidden_size, device=mask.device, dtype=dtype)
    qkv = torch.randn(3, batch, heads, total, head_dim, device=mask.device, dtype=dtype)

    def layer(implementation: str, attention_mask: Tensor | BlockMask) -> Callable[[], None]:
        settings = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": False}

        def work() -> None:
            llm.model.set_attn_implementation(implementation)
            both_ways(lambda inputs: llm.model(inputs_embeds=inputs, **settings).last_hidden_state, embeddings)

        return work

    def attention(attn_mask: Tensor | None) -> Callable[[], None]:
        return lambda: both_ways(lambda inputs: F.scaled_dot_product_attention(*inputs, attn_mask=attn_mask), qkv)

    found = {"layer_ms": layer("sdpa", added), "eager_layer_ms": layer("eager", added)}
    compiles = mask.device.type == "cuda" and missing_for_compiling(mask.device) is None
    if compiles and llm.model._supports_flex_attn:
        found["flex_layer_ms"] = layer("flex_attention", block_mask(mask))
    return found | {"masked_ms": attention(added), "unmasked_ms": attention(None)}


def both_ways(function: Callable[[Tensor], Tensor], start: Tensor) -> None:
    """A forward and a backward pass, to their end."""
    inputs = start.clone().requires_grad_()
    function(inputs).sum().backward()
    if start.device.type == "cuda":
        torch.cuda.synchronize()


def format_result(found: dict, batch_size: int, device: torch.device) -> str:
    """The figures as lines of text."""
    lines = [
        f"batch {batch_size}, {found['precision']}, {device}: {found['tokens']} tokens, {found['allowed_pairs']:.0%} "
        f"of the pairs may attend, {found['empty_blocks']:.0%} of the blocks are empty; ms forward and backward "
        "(10 to 90 %)"
    ]
    for name, title in TITLES.items():
        if name in found:
            values = found[name]
            lines.append(f"  {title:20s} {values['median']:8.1f} ({values['p10']:.1f} to {values['p90']:.1f})")
    lines.append(
        f"  SDPA has {found['share_of_layer']['median']:.1%} of a layer's time and takes "
        f"{found['masked_ratio']['median']:.2f} times as long as without a mask; eager makes the layer "
        f"{found['eager_layer_ratio']['median']:.2f} times as long"
        + (f", flex {found['flex_layer_ratio']['median']:.2f} times" if "flex_layer_ratio" in found else "")
    )
    return "\n".join(lines)
