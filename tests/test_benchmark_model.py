"""The benchmarks of the full-size model: parameters, memory, steps."""

import argparse
import json
import sys
from dataclasses import replace

import pytest
import torch

from models.detector import build_detector
from tests.micro import micro_config
from tools import benchmark
from tools.benchmarks import attention, memory, step
from tools.benchmarks.full_model import made_up_batch, stand_in_loss
from tools.benchmarks.live_memory import LiveMemory
from utils.errors import UserError
from utils.optim import build_optimizer, parameter_groups


def run(monkeypatch, tmp_path, *flags):
    """The figures that a stage writes."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, flags), "--json", str(tmp_path / "out.json")])
    benchmark.main()
    return json.loads((tmp_path / "out.json").read_text())["result"]


def test_parameters_at_full_size_are_those_of_the_design(monkeypatch, tmp_path, capsys):
    result = run(monkeypatch, tmp_path, "params")
    rows = {row["part"]: row for row in result["rows"]}
    assert rows["vision"]["parameters"] == 985_952_256 and rows["vision"]["trained"] == 0
    assert 105.1e6 < rows["qformer"]["trained"] < 105.2e6 and rows["qformer"]["group"] == "qformer"
    assert rows["map_queries"]["trained"] == 4_300_800
    assert 6.6e9 < rows["llm"]["parameters"] < 6.61e9 and rows["llm"]["trained"] == 0
    assert rows["llm"]["dtype"] == rows["vision"]["dtype"] == "float16"
    assert 10e6 < rows["decoder"]["trained"] < 12e6
    assert 0.015 < result["trained"] / result["parameters"] < 0.02
    assert "140,618,446 trained (1.82%)" in capsys.readouterr().out


def test_live_memory_follows_storages_until_they_are_freed():
    before = torch.zeros(1000)
    with LiveMemory([before]) as followed:
        after = before + 1
        view = after.view(10, 100)
        assert followed.live == 8000
        del after
        assert followed.live == 8000, "the view keeps it"
        del view
    assert followed.live == 4000 and followed.peak == 8000


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_what_a_real_step_holds(checkpointing):
    config = micro_config(llm_checkpointing=checkpointing)
    estimated = memory.estimate(config, 2, torch.float32)
    torch.manual_seed(0)
    model = build_detector(config).train()
    optimizer = build_optimizer(model, dict.fromkeys(parameter_groups(model), 1e-4), weight_decay=0.01)
    batch = made_up_batch(config, 2)
    given = [*model.parameters(), *model.buffers(), *(v for v in batch.values() if isinstance(v, torch.Tensor))]
    with LiveMemory(given) as followed:
        for _ in range(2):
            followed.peak = followed.live
            stand_in_loss(model(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert estimated["peak_gb"] == pytest.approx(followed.peak / 1e9, rel=0.02)
    assert estimated["optimizer_gb"] == pytest.approx(2 * estimated["gradients_gb"], rel=0.01)


def test_checkpointing_and_packing_save_what_they_should():
    config = micro_config(random_llm=replace(micro_config().random_llm, hidden_size=64, num_layers=6, mlp_size=256))
    plain = memory.estimate(config, 2, torch.float16)
    checkpointed = memory.estimate(replace(config, llm_checkpointing=True), 2, torch.float16)
    assert checkpointed["activations_gb"] < 0.7 * plain["activations_gb"]
    packed = memory.estimate(replace(config, llm_quantization="nf4"), 2, torch.float16)
    linears = 6 * (4 * 64 * 64 + 3 * 64 * 256)
    saved = (plain["weights_gb"] - packed["weights_gb"]) * 1e9
    assert saved == pytest.approx(linears * (16 - memory.STORED_BITS["nf4"]) / 8, rel=0.02)
    with_lora = [memory.estimate(replace(config, lora_rank=8, llm_quantization=stored), 2, torch.float16)
                 for stored in ("none", "nf4")]  # fmt: skip
    grown = with_lora[0]["gradients_gb"] - plain["gradients_gb"]
    assert grown * 1e9 == pytest.approx(4 * 6 * 8 * (4 * (64 + 64) + 3 * (64 + 256)))
    assert with_lora[1]["gradients_gb"] == with_lora[0]["gradients_gb"]
    assert with_lora[1]["optimizer_gb"] == with_lora[0]["optimizer_gb"]
    assert with_lora[1]["activations_gb"] > packed["activations_gb"]


def test_a_step_is_timed_and_its_rate_is_a_share_of_the_machine(monkeypatch, tmp_path):
    flags = ["step", "--preset", "tiny", "--batch-size", 2, "--steps", 2, "--warmup", 1, "--precision", "fp32"]
    result = run(monkeypatch, tmp_path, *flags)
    assert result["seconds"]["count"] == 2 and 0 < result["mfu"] < 1
    assert result["samples_per_s"] == pytest.approx(2 / result["seconds"]["median"])


def test_a_step_that_does_not_fit_is_a_row_and_not_the_end(monkeypatch, capsys):
    def measure_step(config, batch, *args, **kwargs):
        if len(batch["images"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"peak_gb": 1.25}

    def as_if_on_a_gpu(*args):
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: True)
            return measured_peak(*args)

    measured_peak = memory.measured_peak
    monkeypatch.setattr(memory, "measure_step", measure_step)
    monkeypatch.setattr(memory, "measured_peak", as_if_on_a_gpu)
    parser = argparse.ArgumentParser()
    memory.add_arguments(parser)
    args = parser.parse_args(["--preset", "tiny", "--batch-size", "2", "1", "--gradient-checkpointing", "off"])
    rows = memory.run(args)["rows"]
    assert [(row["fits"], row["measured_gb"]) for row in rows] == [(False, None), (True, 1.25)]
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.endswith("does not fit") and second.endswith("1.25")


def test_model_flop_of_a_layer_are_those_of_its_products():
    """Attention included, which torch does not count in all of its kernels."""
    one, two = (replace(micro_config().random_llm, num_layers=layers) for layers in (1, 2))
    added = step.model_flop(micro_config(random_llm=two), 1) - step.model_flop(micro_config(random_llm=one), 1)
    mask, _ = attention.llm_input(micro_config(), build_detector(micro_config()).llm, 1)
    tokens, width, mlp = mask.shape[-1], one.hidden_size, one.mlp_size
    linear = 2 * tokens * (4 * width**2 + 3 * width * mlp)
    # Forward, and backward to the inputs alone, as the weights are frozen; attention's inputs are two products' each.
    assert added == 2 * linear + 3 * 4 * tokens**2 * width


def test_model_flop_grow_with_the_batch_and_not_with_checkpointing():
    config = micro_config()
    one, two = (step.model_flop(config, batch_size) for batch_size in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.01)
    assert step.model_flop(replace(config, llm_checkpointing=True), 1) == one
    assert step.model_flop(replace(config, llm_quantization="nf4"), 1) == one


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["memory", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["params", "--layers", "0"], "--layers 0"),
        (["step", "--steps", "0"], "--steps 0"),
        (["memory", "--lora-rank", "-1"], "lora_rank=-1"),
        (["step", "--preset", "tiny", "--llm-path", "none", "--llm-attention", "flex"], "llm_path=none"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(monkeypatch, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(monkeypatch, tmp_path, *flags)


@pytest.mark.parametrize("without", [(), ("qformer",), ("ground_tokens", "causal_prefix")])
def test_attention_is_timed_with_the_mask_of_the_detector(without):
    config = micro_config(without=without)
    model = build_detector(config).eval()
    given = {}
    model.llm.register_forward_pre_hook(lambda _, inputs: given.update(mask=inputs[1], position_ids=inputs[2]))
    with torch.no_grad():
        model(made_up_batch(config, 2))
    mask, position_ids = attention.llm_input(config, model.llm, 2)
    assert torch.equal(mask, given["mask"]) and torch.equal(position_ids, given["position_ids"])


def test_ways_to_attend_are_timed(monkeypatch, tmp_path, capsys):
    result = run(monkeypatch, tmp_path, "attention", "--preset", "tiny", "--repeats", 2, "--warmup", 1)
    assert 0 < result["allowed_pairs"] < 1 - result["empty_blocks"] < 1
    assert result["share_of_layer"]["count"] == 2 and result["share_of_layer"]["median"] > 0
    assert "flex_layer_ms" not in result, "it has no backward pass on a CPU"
    assert "521 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="--llm-path none"):
        run(monkeypatch, tmp_path, "attention", "--preset", "tiny", "--llm-path", "none")


@pytest.mark.gpu
def test_the_estimate_is_near_the_peak_that_a_gpu_measures():
    from tools.benchmarks.full_model import config_from

    flags = {"preset": "base", "llm_path": "random", "layers": 4, "llm_quantization": "none", "lora_rank": 0,
             "llm_layers": 0}
    config = config_from(argparse.Namespace(**flags))
    estimated = memory.estimate(config, 1, torch.float16)["peak_gb"]
    measured = step.measure_step(config, made_up_batch(config, 1), torch.float16, steps=2, warmup=1)["peak_gb"]
    assert measured == pytest.approx(estimated, rel=0.1)


def test_what_cannot_run_on_the_gpu_for_lack_of_a_package_is_estimated_only(monkeypatch, capsys):
    def refuse(*_: object, **__: object) -> None:
        raise UserError("--llm-quantization nf4: needs bitsandbytes")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "measure_step", refuse)
    found = memory.measured_peak(micro_config(), 1, argparse.Namespace(precision="fp32"))
    assert found == {"fits": None, "measured_gb": None}
    assert capsys.readouterr().err == "warning: estimated only: --llm-quantization nf4: needs bitsandbytes\n"
