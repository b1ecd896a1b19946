import weakref

import pytest
import torch
from torch import nn

from models.config import RandomLLMConfig
from models.llm.frozen import build_llm
from tests.made_llm import made_llm, save_llm
from tests.micro import micro_config
from utils.checkpoint import differing_frozen, frozen_identity

pytest.importorskip("bitsandbytes")

SHAPE = RandomLLMConfig(hidden_size=128, num_layers=3, num_heads=4, mlp_size=320, vocab_size=64)
LENGTH = 40


def build(quantization, dtype=torch.float16, **changes):
    return build_llm(micro_config(random_llm=SHAPE, llm_quantization=quantization, **changes), dtype=dtype)


def run(llm):
    """Hidden states and input gradient."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, LENGTH, 128, generator=generator).requires_grad_()
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    states = llm(embeddings, mask, torch.arange(LENGTH).expand(2, -1)).float()
    (states * torch.randn(states.shape, generator=generator)).sum().backward()
    return states.detach(), embeddings.grad


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def dequantized(layer):
    import bitsandbytes as bnb

    if isinstance(layer, bnb.nn.Linear8bitLt):
        return layer.weight.CB.float() * layer.weight.SCB.float()[:, None] / 127
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_what_is_quantised_does_not_depend_on_the_precision_of_the_run(quantization, tmp_path):
    """So that a model trained in bf16 is known again where it is evaluated in fp16 or on a CPU."""
    model = made_llm("llama", hidden_size=64, intermediate_size=128).half()
    folder = save_llm(tmp_path, model)
    config = micro_config(llm_path=str(folder), prompt="map of a car", llm_quantization=quantization)
    stored, *others = (frozen_identity(build_llm(config, dtype=dtype))
                       for dtype in (torch.float16, torch.bfloat16, torch.float32))  # fmt: skip
    for other in others:
        assert differing_frozen(stored, other) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantization, close, share", [("int8", 0.998, 0.56), ("nf4", 0.9, 0.32)])
def test_the_input_gradient_is_nearly_that_of_half_precision(quantization, close, share, dtype):
    half, quantized = build("none", dtype), build(quantization, dtype)
    for expected, found in zip(run(half), run(quantized), strict=True):
        assert cosine(expected, found) > close
    size = [sum(parameter.nbytes for parameter in llm.parameters()) for llm in (half, quantized)]
    assert size[1] < share * size[0]
    assert not any(parameter.requires_grad for parameter in quantized.parameters())


@pytest.mark.parametrize("quantization, close", [("int8", 0.999), ("nf4", 0.9999)])
def test_the_input_gradient_is_that_of_the_quantised_weights(quantization, close):
    """What separates it from half precision is rounding (of inputs too in int8), nothing in the backward pass."""
    quantized, same_weights = build(quantization), build("none", torch.float32)
    layers = dict(quantized.model.named_modules())
    for name, layer in same_weights.model.named_modules():
        if type(layer) is nn.Linear:
            layer.weight.data = dequantized(layers[name])
    for expected, found in zip(run(same_weights), run(quantized), strict=True):
        assert cosine(expected, found) > close


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantised_weights_stay_as_they_are(quantization):
    llm = build(quantization)
    before = {name: parameter.clone() for name, parameter in llm.named_parameters()}
    identity = frozen_identity(llm)
    with torch.no_grad():
        llm(torch.randn(1, 4, 128), torch.ones(1, 1, 4, 4, dtype=torch.bool).tril(), torch.arange(4)[None])
    run(llm.train())
    assert all(torch.equal(before[name], parameter) for name, parameter in llm.named_parameters())
    again = frozen_identity(llm)
    assert identity.keys() == again.keys() and all(torch.equal(identity[name], again[name]) for name in identity)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_gradient_checkpointing_frees_what_quantised_layers_read(quantization):
    llm, read = build(quantization, llm_checkpointing=True), []
    for layer in llm.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: read.append(weakref.ref(inputs[0])))
    states = llm(
        torch.randn(1, 4, 128, requires_grad=True), torch.ones(1, 1, 4, 4, dtype=torch.bool), torch.arange(4)[None]
    )
    assert states.requires_grad and len(read) == SHAPE.num_layers
    assert all(reference() is None for reference in read)


def test_checkpointing_and_lora_work_on_quantised_layers():
    plain, checkpointed = build("nf4"), build("nf4", llm_checkpointing=True)
    for expected, found in zip(run(plain), run(checkpointed), strict=True):
        assert torch.equal(expected, found)
    adapted = build("nf4", lora_rank=4, llm_checkpointing=True)
    assert torch.equal(run(adapted)[0], run(plain)[0]), "LoRA starts as nothing"
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * SHAPE.num_layers
    assert all(parameter.grad is not None for parameter in trained.values())
