"""The benchmark of the criterion: that it measures what it says, and that its yardsticks find the same losses."""

import argparse

import pytest
import torch

from data.made_up import random_target
from models.criterion import MapCriterion
from models.matcher import order_table
from tests.test_benchmark_model import run
from tools.benchmarks import criterion
from utils.errors import UserError
from utils.frame import PC_RANGES

SMALL = {"batch_size": 3, "instances": 12, "points": 6, "ground_truth": 7, "heads": 3, "seed": 1}
WAYS = [criterion.distances_one_by_one, criterion.distances_at_once]


def small_case():
    outputs, batch = criterion.made_up_outputs(argparse.Namespace(**SMALL))
    batch["targets"][1] = random_target(torch.Generator(), 0, SMALL["points"])
    return criterion.to_device(outputs, torch.device("cpu")), batch


def gradients(losses_of, outputs, batch):
    criterion.forward_and_backward(losses_of, MapCriterion(SMALL["points"], 3, PC_RANGES["60x30"]), outputs, batch)
    heads = [outputs, *outputs["aux_outputs"]]
    return [head[name].grad.clone() for head in heads for name in ("pred_logits", "pred_pts")]


@pytest.mark.parametrize("distances", WAYS)
def test_the_yardstick_finds_the_same_losses_and_gradients(distances):
    outputs, batch = small_case()
    batched = MapCriterion(SMALL["points"], 3, PC_RANGES["60x30"])

    def plain(outputs, batch):
        return criterion.plain_losses(outputs, batch, distances)

    found, wanted = plain(outputs, batch), batched(outputs, batch)
    assert set(found) == set(wanted) and len(wanted) == 3 * SMALL["heads"]
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(plain, outputs, batch), gradients(batched, outputs, batch), strict=True):
        assert other.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distances", WAYS)
def test_the_yardstick_takes_a_batch_without_ground_truth(distances):
    outputs, batch = small_case()
    batch["targets"] = [batch["targets"][1]] * SMALL["batch_size"]
    wanted = MapCriterion(SMALL["points"], 3, PC_RANGES["60x30"])(outputs, batch)
    found = criterion.plain_losses(outputs, batch, distances)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in wanted.items()}
    )


@pytest.mark.parametrize("closed", [False, True])
def test_the_orders_of_the_yardstick_are_all_there_are(closed):
    line = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    if closed:
        line[-1] = line[0]
    found = criterion.equivalent_orders(line, closed)
    table = line[order_table(5)[int(closed)]]
    assert found.shape == table.shape

    def distinct(orders):
        return {tuple(order.flatten().tolist()) for order in orders}

    assert distinct(found) == distinct(table) and len(distinct(found)) == (8 if closed else 2)


def test_the_stage_measures_what_it_says(monkeypatch, tmp_path, capsys):
    sizes = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = run(monkeypatch, tmp_path, "criterion", *sizes, "--warmup", 1, "--repeats", 3, "--steps", 1)
    spreads = ("ms", "yardstick_ms", "matrix_yardstick_ms", "limit_ms", "yardstick_ratio", "matrix_yardstick_ratio",
               "limit_ratio")  # fmt: skip
    for name in spreads:
        assert result[name]["count"] == 3 and 0 < result[name]["p10"] <= result[name]["p90"]
    assert result["limit_ratio"]["median"] > 1
    step = result["step"]
    assert step["share"] == pytest.approx(step["criterion_ms"]["median"] / step["step_ms"]) and 0 < step["share"] < 1
    out = capsys.readouterr().out
    assert f"order by order: {result['yardstick_ms']['median']:.0f} ms" in out
    assert f"a training step of the tiny preset, batch 3: {step['step_ms']:.0f} ms" in out


def test_the_share_of_a_step_can_be_left_out(monkeypatch, tmp_path):
    assert "step" not in run(monkeypatch, tmp_path, "criterion", "--repeats", 1, "--warmup", 0, "--steps", 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "expected at least 1"),
        (["--points", "3"], "--points at least 4"),
        (["--steps", "-1"], "--warmup 2 --steps -1: expected at least 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(monkeypatch, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(monkeypatch, tmp_path, "criterion", *flags)
