"""Frozen linear layers in 8 or 4 bits through bitsandbytes, an optional package."""

import logging
from types import MethodType

import torch
from torch import Tensor, nn

from utils.errors import UserError

# 4-bit normal floats and their scales, quantised once more: QLoRA (Dettmers et al., 2023). int8: LLM.int8() (2022).
_INT8_OUTLIER = 6.0  # input features beyond this are multiplied in half precision, as the paper has it


def linear_layers(model: nn.Module, flag: str) -> dict[str, nn.Linear]:
    """The linear layers by name, for what the flag does to them. Raises UserError for a model that has none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not found:  # GPT-2 has layers of its own kind
        raise UserError(f"{flag}: finds no linear layer in a {model.config.model_type} model; leave it out, or take a "
                        "llama, mistral, qwen2 or qwen3 model")
    return found


def quantize_linears(model: nn.Module, quantization: str, dtype: torch.dtype) -> None:
    """Put bitsandbytes' layer in the place of each linear layer of a model on the meta device.

    quantization: int8 | nf4. dtype: what the layers compute in.
    """
    import bitsandbytes as bnb

    # At every call of an int8 layer it warns that it computes in float16, which is what int8 means.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for name, linear in linear_layers(model, f"--llm-quantization {quantization}").items():
        size = (linear.in_features, linear.out_features, linear.bias is not None)
        if quantization == "int8":
            layer = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False, threshold=_INT8_OUTLIER, device="meta")
            layer.forward = MethodType(_Int8Product.of, layer)
        else:
            layer = bnb.nn.Linear4bit(*size, compute_dtype=dtype, quant_type="nf4", device="meta")
            # On some processors bitsandbytes repacks the weight at the first call without gradient, for good.
            layer.support_avx512bf16_for_cpu = False
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)


class _Int8Product(torch.autograd.Function):
    """An int8 layer's product, whose weight never trains.

    bitsandbytes' own keeps the layer's input for a gradient of the weight, and neither gradient checkpointing nor the
    end of the backward pass frees it: 2 GB a sample in a 7B.
    """

    @staticmethod
    def of(layer: nn.Linear, x: Tensor) -> Tensor:
        return _Int8Product.apply(x, layer)

    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        return type(layer).forward(layer, x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        state = ctx.layer.state  # CB: the weight [out, in] in int8; SCB: the largest magnitude of each row
        return grad @ state.CB.to(grad.dtype).mul_((state.SCB / 127)[:, None]), None


def is_quantized(module: nn.Module) -> bool:
    """Whether quantize_linears put this layer there."""
    return type(module).__module__.startswith("bitsandbytes.")


def quantized_weight(layer: nn.Linear, weight: Tensor, device: torch.device) -> nn.Parameter:
    """The weight [out, in], in half or full precision, in the form that the layer wants, on the device."""
    import bitsandbytes as bnb

    weight = weight.cpu()  # bitsandbytes quantises int8 on the way from the CPU to the device, and only there
    if isinstance(layer, bnb.nn.Linear8bitLt):
        return bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
    return bnb.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
    ).to(device)
