"""Devices and precisions of a GPU's forward pass, on tensors that have these but no content, so without a GPU."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.config import PRESETS, ModelConfig
from tools.benchmarks.full_model import fake_detector, made_up_batch

GPU = "cuda:0"


class CudaAutocast(contextlib.ContextDecorator):
    """torch.autocast, which turns itself off for "cuda" where there is no GPU; this one does not."""

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True,
                 cache_enabled: bool | None = None):
        assert device_type == "cuda"
        self.dtype, self.enabled = dtype, enabled

    def __enter__(self):
        self.before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", self.enabled)
        torch.set_autocast_dtype("cuda", self.dtype or self.before[1])
        torch.autocast_increment_nesting()

    def __exit__(self, *raised):
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", self.before[0])
        torch.set_autocast_dtype("cuda", self.before[1])


def shallow(name: str) -> ModelConfig:
    """A preset with one layer of each frozen part, at its own widths."""
    preset = PRESETS[name]
    parts = {part: replace(getattr(preset, part), num_layers=1) for part in ("vision", "random_llm")}
    return replace(preset, qformer_pretrained="none", llm_path="random", **parts)


def to_gpu(value):
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=GPU)
    if isinstance(value, dict):
        return {key: to_gpu(item) for key, item in value.items()}
    return [to_gpu(item) for item in value] if isinstance(value, list) else value


def tensors_of(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_a_gpu_s_forward_pass_mixes_neither_devices_nor_precisions(preset, dtype, monkeypatch):
    config = shallow(preset)
    batch = made_up_batch(config, 2)
    with fake_detector(config, dtype, GPU) as model:
        monkeypatch.setattr(torch, "autocast", CudaAutocast)
        states = []
        model.llm.register_forward_hook(lambda llm, given, made: states.append(made))
        with torch.autocast("cuda", dtype):
            outputs = model(to_gpu(batch))
    assert [made.dtype for made in states] == [dtype]
    every = tensors_of(outputs)
    assert len(every) > 10 and {str(tensor.device) for tensor in every} == {GPU}
    for head in (outputs, *outputs["aux_outputs"], *outputs["noisy_outputs"]):
        assert head["pred_pts"].dtype == head["pred_logits"].dtype == torch.float32


def test_a_tensor_on_the_wrong_device_would_be_noticed():
    config = shallow("tiny")
    batch = made_up_batch(config, 2)
    with fake_detector(config, torch.float16, GPU) as model, pytest.raises(RuntimeError, match="device"):
        model(to_gpu(batch) | {"ground_z": batch["ground_z"]})
