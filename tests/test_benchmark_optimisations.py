"""The benchmark of a step's optimisations: that each is really undone, and that the losses stay what they were."""

import subprocess
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import detector, matcher
from models.llm import frozen
from tests.micro import micro_config
from tests.test_benchmark_model import run
from tools.benchmarks import optimisations
from tools.benchmarks.full_model import made_up_batch
from tools.benchmarks.step import RepeatedStep
from utils.errors import UserError


@pytest.fixture
def step():
    config = micro_config()
    return RepeatedStep(config, made_up_batch(config, 2), torch.float32)


def forbid(monkeypatch, owner, name):
    def called(*_args, **_kwargs):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(owner, name, called)


# Where the optimisation is: without it nobody calls this.
PLACES = {
    "added-mask": (frozen, "added_mask"),
    "criterion": (matcher.HungarianMatcher, "__call__"),
    "orders": (matcher, "least_of_needed_orders"),
    "spread": (detector, "spread_across_batch"),
}


@pytest.mark.parametrize("row", PLACES)
def test_a_step_without_it_does_not_come_by(step, monkeypatch, row):
    forbid(monkeypatch, *PLACES[row])
    with optimisations.UNDO[row](step):
        step()
    with pytest.raises(AssertionError, match="was called"):
        step()


def test_frozen_weights_have_gradients_only_while_they_are_asked_for(step):
    frozen_parameters = [p for p in step.model.llm.parameters() if not p.requires_grad]
    assert frozen_parameters
    with optimisations.with_weight_gradients(step):
        step()
        assert all(p.grad is not None for p in frozen_parameters if p.dim() == 2 and p is not embedding(step))
    step()
    assert all(p.grad is None and not p.requires_grad for p in frozen_parameters)


def embedding(step):
    return step.model.llm.model.get_input_embeddings().weight


def test_logits_cost_the_product_with_the_vocabulary(step):
    flop = {}
    for name, undo in (("with", optimisations.nullcontext), ("without", optimisations.with_logits)):
        with undo(step), FlopCounterMode(display=False) as counter:
            step()
        flop[name] = counter.get_total_flops()
    vocabulary, width = embedding(step).shape
    text, _ = step.model.llm.prompt(["", ""])
    queries = step.model.map_queries
    tokens = text.shape[1] + queries.num_instances * (1 + queries.num_points) + scene_tokens(step)
    assert flop["without"] - flop["with"] == 2 * 2 * tokens * width * vocabulary


def scene_tokens(step):
    config, model = micro_config(), step.model
    return model.num_ground_tokens + config.qformer.num_query_tokens * step.batch["images"].shape[1]


def test_adamw_is_unfused_for_a_step(step):
    def fused():
        return {group["fused"] for group in step.optimizer.param_groups}

    state = step.optimizer.state
    with optimisations.with_plain_adamw(step):
        assert fused() == {None}
        step()
        assert step.optimizer.state is state and len(state) == len(step.trained)
    assert fused() == {True}


@pytest.mark.parametrize("row", optimisations.UNDO)
def test_the_losses_stay(row):
    config = micro_config()
    batch = made_up_batch(config, 2)
    one, other = (RepeatedStep(config, batch, torch.float32) for _ in range(2))
    losses = [one().item() for _ in range(3)]
    with optimisations.UNDO[row](other):
        others = [other().item() for _ in range(3)]
    assert optimisations.largest_difference(losses, others) < 1e-5
    assert losses[0] != losses[2], "the steps change the network"


def test_the_stage_measures_rows_in_this_process_and_between_processes(monkeypatch, tmp_path, capsys):
    flags = ["--layers", 1, "--repeats", 2, "--warmup", 0, "--processes", 1]
    found = run(monkeypatch, tmp_path, "optimisations", "--rows", "frozen-weights", "memory", *flags)
    assert list(found) == ["frozen-weights", "memory"]
    for row in found.values():
        assert row["seconds"]["median"] > 0 and row["without_seconds"]["median"] > 0 and row["loss_difference"] < 1e-5
    assert found["frozen-weights"]["ratio"]["count"] == 2 and found["memory"]["ratio"]["count"] == 1
    assert found["memory"]["peak_gb"] is None
    assert 0 < found["frozen-weights"]["peak_gb"] <= found["frozen-weights"]["without_peak_gb"]
    assert optimisations.ROWS["memory"] in capsys.readouterr().out


def test_dropout_is_the_same_in_both_trainings(monkeypatch):
    config = micro_config()
    config = replace(config, qformer=replace(config.qformer, dropout=0.3))
    monkeypatch.setattr(optimisations, "config_from", lambda _args: config)
    args = Namespace(batch_size=2, precision=None, warmup=1, repeats=2)
    assert optimisations.in_turns(args, optimisations.with_logits)["loss_difference"] == 0


def test_processes_differ_in_the_scripts_settings_of_glibc_and_in_nothing_else(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    run_really, seen = subprocess.run, []

    def print_environment(command, **settings):
        settings["stdout"] = subprocess.PIPE
        done = run_really([*command[:4], "env"], text=True, **settings)
        seen.append(dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith(("MALLOC", "OMP"))))
        raise KeyboardInterrupt

    monkeypatch.setattr(optimisations.subprocess, "run", print_environment)
    for keeps_memory in (True, False):
        with pytest.raises(KeyboardInterrupt):
            optimisations.step_of_a_process(["--preset", "tiny"], keeps_memory)
    kept, freed = seen
    assert int(kept["MALLOC_TRIM_THRESHOLD_"]) > 1e9 and kept["OMP_WAIT_POLICY"] == "PASSIVE"
    assert freed == {name: value for name, value in kept.items() if not name.startswith("MALLOC")}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", "0"], "expected at least 1"),
        (["--llm-path", "none", "--rows", "no-logits", "adamw"], "--llm-path none --rows no-logits: "),
    ],
)
def test_settings_that_cannot_be_meant_are_named(monkeypatch, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(monkeypatch, tmp_path, "optimisations", *flags)


def test_the_difference_is_the_largest_of_all_steps():
    assert optimisations.largest_difference([2.0, 4.0], [2.0, 5.0]) == 0.25
