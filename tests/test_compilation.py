"""--compile: the frozen layers as compiled code give the same values and gradients, and what cannot be is refused."""

import sysconfig
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from models.compilation import check_compiling, compile_frozen
from models.config import RandomLLMConfig
from models.detector import build_detector
from tests.compiler import needs_compiler
from tests.micro import micro_config, random_batch
from tests.micro_trainer import make_trainer
from tools.benchmarks.full_model import stand_in_loss
from utils.checkpoint import trainable_state
from utils.errors import UserError

CPU = torch.device("cpu")


def frozen_config(**changes):
    """The micro model with a tower that does not train, and three layers in tower and LLM."""
    config = micro_config(**changes)
    llm = RandomLLMConfig(hidden_size=16, num_layers=3, num_heads=2, mlp_size=32, vocab_size=64)
    return replace(config, vision=replace(config.vision, trainable=False, num_layers=3), random_llm=llm)


def results(config, compiled):
    """Loss, gradients and names of the weights after one backward pass, and the loss of a batch of another size."""
    torch.manual_seed(0)
    model = build_detector(config).train()
    if compiled:
        compile_frozen(model)
    loss = stand_in_loss(model(random_batch(config)))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        other = stand_in_loss(model(random_batch(config, counts=(1,))))
    return loss.detach(), other, gradients, list(model.state_dict())


@needs_compiler
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_give_the_same_values_and_gradients(checkpointing):
    config = frozen_config(llm_checkpointing=checkpointing)
    torch.compiler.reset()
    counters.clear()
    plain, compiled = results(config, False), results(config, True)
    # For the tower without gradient, the LLM with and without, and each again for batches of any size.
    assert 2 <= counters["stats"]["unique_graphs"] <= 6, "each layer was compiled for itself"
    for first, second in zip(plain[:2], compiled[:2], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-4)
    assert plain[2].keys() == compiled[2].keys() and plain[3] == compiled[3]
    for name, gradient in plain[2].items():
        torch.testing.assert_close(gradient, compiled[2][name], rtol=1e-3, atol=1e-5 * gradient.abs().max() + 1e-6)


@needs_compiler
def test_a_training_compiles_what_is_frozen(synthetic_world, caches, tmp_path):
    """And ends with the weights of a training without, but for few whose gradient is little more than rounding."""
    ends = []
    for flags in ((), ("--compile",)):
        counters.clear()
        trainer = make_trainer(tmp_path / f"run{len(flags)}", synthetic_world, caches, "--epochs", "1", *flags)
        trainer.run()
        assert bool(counters["stats"]) == bool(flags)
        ends.append(trainable_state(trainer.model))
    assert ends[0].keys() == ends[1].keys()
    differs = torch.cat([(ends[0][name] - ends[1][name]).abs().flatten() > 1e-5 for name in ends[0]])
    assert differs.float().mean() < 1e-3


@needs_compiler
@pytest.mark.parametrize(("changes", "sharded", "message"), [
    ({"llm_path": "none"}, False, "--compile: .*nothing is frozen"),
    ({}, True, "--compile: --shard-llm"),
])
def test_what_cannot_be_compiled_is_refused(changes, sharded, message):
    check_compiling(micro_config(), CPU, compiled=True)
    check_compiling(replace(frozen_config(), llm_path="none"), CPU, compiled=True)
    check_compiling(micro_config(**changes), CPU, False, sharded)
    with pytest.raises(UserError, match=message):
        check_compiling(micro_config(**changes), CPU, True, sharded)


@pytest.mark.parametrize(("device", "there", "variables", "looked_for"), [
    ("cpu", "clang++", {}, r"g\+\+"), ("cpu", "g++", {"CXX": "icpx"}, "icpx"), ("cpu", "g++", {}, None),
    ("cuda", "g++", {}, "gcc and clang"), ("cuda", "clang", {}, None), ("cuda", "gcc", {"CC": "/no/cc"}, "/no/cc"),
])  # fmt: skip
def test_a_machine_without_the_compiler_is_told_so(device, there, variables, looked_for, monkeypatch, tmp_path):
    (tmp_path / there).touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    device, flex = torch.device(device), micro_config(llm_attention="flex")
    check_compiling(micro_config(), device, compiled=False)
    asked = [(micro_config(), True, "--compile")]
    if device.type == "cuda":
        asked.append((flex, False, "--llm-attention flex"))
    else:
        check_compiling(flex, device, compiled=False)
    for config, compiled, flag in asked:
        if looked_for is None:
            check_compiling(config, device, compiled)
        else:
            with pytest.raises(UserError, match=f"{flag}: no compiler, looked for {looked_for};"):
                check_compiling(config, device, compiled)


def test_a_machine_without_pythons_headers_is_told_so(monkeypatch, tmp_path):
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "include"))
    with pytest.raises(UserError, match="--compile: no .*Python.h; install"):
        check_compiling(micro_config(), CPU, compiled=True)
