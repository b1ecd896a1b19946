"""What each optimisation of a training step saves: time, memory and losses of the step with it and without it.

For each row two trainings of one seed on one batch take turns, so that noise of the machine meets both alike; one of
them goes without the optimisation. Losses are compared over all steps: those of a saving that changes nothing are
equal, those of one that computes the same in another order differ by rounding.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from models import detector, matcher
from models.llm import frozen
from tools.benchmarks.common import rounds, spread
from tools.benchmarks.criterion import distances_one_by_one, plain_losses
from tools.benchmarks.full_model import add_model_arguments, config_from, made_up_batch
from tools.benchmarks.live_memory import LiveMemory
from tools.benchmarks.step import RepeatedStep
from utils.device import PRECISIONS, default_device, default_precision
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MEMORY_SETTINGS = "MALLOC_"  # what the names of scripts/environment.sh's settings of glibc begin with

# What undoes an optimisation while a step runs.
Undo = Callable[[RepeatedStep], AbstractContextManager]


@contextmanager
def with_weight_gradients(step: RepeatedStep) -> Iterator[None]:
    """The frozen weights ask for gradients, which nobody uses."""
    frozen_parameters = [p for p in step.model.parameters() if not p.requires_grad and p.is_floating_point()]
    for parameter in frozen_parameters:
        parameter.requires_grad_(True)
    yield
    for parameter in frozen_parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


@contextmanager
def with_logits(step: RepeatedStep) -> Iterator[None]:
    """The LLM ends in logits over its vocabulary, as transformers' causal language models do; nobody reads them."""
    weight = step.model.llm.model.get_input_embeddings().weight  # a head has its shape

    def compute(_model: object, _inputs: tuple, outputs: object) -> None:
        F.linear(outputs.last_hidden_state, weight)

    hook = step.model.llm.model.register_forward_hook(compute)
    yield
    hook.remove()


def with_mask_of_bools(_step: RepeatedStep) -> AbstractContextManager:
    """Each layer is given the mask as bools, which its attention turns into numbers."""
    return patch.object(frozen, "added_mask", lambda mask, _dtype: mask)


@contextmanager
def with_loops(step: RepeatedStep) -> Iterator[None]:
    """Matching and losses of instances head by head, sample by sample, line by line and order by order."""

    def head_losses(logits: Tensor, pts: Tensor, *_others: object) -> dict[str, Tensor]:
        *aux, last = [{"pred_logits": a, "pred_pts": b} for a, b in zip(logits, pts, strict=True)]
        return plain_losses({**last, "aux_outputs": aux}, step.batch, distances_one_by_one)

    with patch.object(step.criterion, "matcher", lambda *_inputs: None), patch.object(
        step.criterion, "head_losses", head_losses
    ):
        yield


def with_repeated_orders(_step: RepeatedStep) -> AbstractContextManager:
    """The matcher compares an open line in as many orders as a ring has, though but two differ."""
    return patch.object(matcher, "least_distances", matcher.least_of_all_orders)


def with_plain_adamw(step: RepeatedStep) -> AbstractContextManager:
    """AdamW as torch chooses it by itself, on the same weights and moments."""
    groups = [{name: value for name, value in group.items() if name != "fused"}
              for group in step.optimizer.param_groups]  # fmt: skip
    plain = torch.optim.AdamW(groups)
    plain.state = step.optimizer.state
    return patch.object(step, "optimizer", plain)


def with_torch_std(_step: RepeatedStep) -> AbstractContextManager:
    """The spread across scenes by torch's std over the first axis."""

    def spread_across_batch(states: Tensor) -> Tensor:
        states = states.detach().float()
        if len(states) < 2 or not states.numel():
            return states.new_tensor(float("nan"))
        return states.std(0).mean() / states.std().clamp(min=1e-12)

    return patch.object(detector, "spread_across_batch", spread_across_batch)


UNDO: dict[str, Undo] = {
    "frozen-weights": with_weight_gradients,
    "no-logits": with_logits,
    "added-mask": with_mask_of_bools,
    "criterion": with_loops,
    "orders": with_repeated_orders,
    "adamw": with_plain_adamw,
    "spread": with_torch_std,
}
ROWS = {
    "frozen-weights": "frozen weights ask for no gradients",
    "no-logits": "no logits over the vocabulary",
    "added-mask": "one mask of numbers for all layers",
    "criterion": "all heads matched at once, not in loops",
    "orders": "the matcher leaves out repeated orders",
    "adamw": "fused AdamW",
    "spread": "spreads without torch's std",
    "memory": "glibc keeps freed memory",
}
NEEDS_LLM = ("frozen-weights", "no-logits", "added-mask")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.set_defaults(preset="tiny")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="(default: all)")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--processes", type=int, default=3, help="each way, for the row `memory`")


def run(args: argparse.Namespace) -> dict:
    """Measure and print; returns for each row seconds, peaks in gigabytes (10^9 bytes) and the losses' difference."""
    if min(args.batch_size, args.repeats, args.processes) < 1 or args.warmup < 0:
        raise UserError(
            f"--batch-size {args.batch_size} --repeats {args.repeats} --processes {args.processes} --warmup "
            f"{args.warmup}: expected at least 1, 1, 1 and 0"
        )
    without_llm = [name for name in args.rows if name in NEEDS_LLM and args.llm_path == "none"]
    if without_llm:
        raise UserError(f"--llm-path none --rows {' '.join(without_llm)}: these are about the LLM; leave them out")
    print(f"{'with it':42s}  seconds  without it, times as long (10 to 90 %)  peak GB  without it  losses differ by")
    result = {}
    for name in args.rows:
        row = result[name] = between_processes(args) if name == "memory" else in_turns(args, UNDO[name])
        ratio = row["ratio"]
        peaks = "  ".join("    -" if row[key] is None else f"{row[key]:5.2f}" for key in ("peak_gb", "without_peak_gb"))
        print(
            f"{ROWS[name]:42s}  {row['seconds']['median']:7.3f}  {ratio['median']:5.2f} ({ratio['p10']:.2f} to "
            f"{ratio['p90']:.2f})  {peaks}  {row['loss_difference']:.1e}", flush=True,
        )  # fmt: skip
    return result


def in_turns(args: argparse.Namespace, undo: Undo) -> dict:
    """A row of two trainings in this process."""
    config = config_from(args)
    dtype = PRECISIONS[args.precision or default_precision(default_device().type == "cuda")]
    batch = made_up_batch(config, args.batch_size)
    steps = {name: RepeatedStep(config, batch, dtype) for name in ("with", "without")}
    undoing: dict[str, Undo] = {"with": nullcontext, "without": undo}
    losses: dict[str, list[float]] = {name: [] for name in steps}

    def step(name: str) -> None:
        torch.manual_seed(len(losses[name]))  # of dropout: step by step the same in both
        with undoing[name](steps[name]):
            losses[name].append(steps[name]().item())

    works = {name: lambda name=name: step(name) for name in steps}
    seconds, ratios = rounds(works, args.warmup, args.repeats)
    peaks = {name: peak_gb(steps[name], work) for name, work in works.items()}
    return {
        "seconds": spread(seconds["with"]),
        "without_seconds": spread(seconds["without"]),
        "ratio": ratios("without", "with"),
        "peak_gb": peaks["with"],
        "without_peak_gb": peaks["without"],
        "loss_difference": largest_difference(losses["with"], losses["without"]),
    }


def peak_gb(step: RepeatedStep, work: Callable[[], None]) -> float:
    """Gigabytes of all tensors of the training at the most, during one more step."""
    states = [value for state in step.optimizer.state.values() for value in state.values()]
    inputs = [value for value in step.batch.values() if isinstance(value, Tensor)]
    with LiveMemory([*step.model.parameters(), *step.model.buffers(), *states, *inputs]) as memory:
        work()
    return memory.peak / 1e9


def largest_difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """Of two trainings' losses, step by step, relative to the first's."""
    return max(abs(one - other) / abs(one) for one, other in zip(losses, others, strict=True))


def between_processes(args: argparse.Namespace) -> dict:
    """The row of what a process is told when it starts: the stage `step` in processes of both kinds, in turns."""
    flags = ["--preset", args.preset, "--llm-path", args.llm_path, "--llm-quantization", args.llm_quantization,
             "--llm-layers", args.llm_layers, "--lora-rank", args.lora_rank, "--batch-size", args.batch_size,
             "--steps", args.repeats, "--warmup", args.warmup]  # fmt: skip
    flags += [*(["--layers", args.layers] if args.layers else []),
              *(["--precision", args.precision] if args.precision else [])]  # fmt: skip
    found: dict[str, list[dict]] = {"with": [], "without": []}
    for _ in range(args.processes):
        for name, results in found.items():
            results.append(step_of_a_process(flags, keeps_memory=name == "with"))
    seconds = {name: [each["seconds"]["median"] for each in results] for name, results in found.items()}
    return {
        "seconds": spread(seconds["with"]),
        "without_seconds": spread(seconds["without"]),
        "ratio": spread([b / a for a, b in zip(seconds["with"], seconds["without"], strict=True)]),
        "peak_gb": None,
        "without_peak_gb": None,
        "loss_difference": largest_difference(*(results[0]["losses"] for results in found.values())),
    }


def step_of_a_process(flags: Sequence[object], keeps_memory: bool) -> dict:
    """The result of the stage `step` in a process that has read the scripts' settings of glibc, or has none."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(MEMORY_SETTINGS)}
    # The script's other settings, such as how threads wait, are those of both.
    read_settings = ". scripts/environment.sh; "
    if not keeps_memory:
        read_settings += f"unset ${{!{MEMORY_SETTINGS}@}}; "
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/step.json"
        command = [sys.executable, "tools/benchmark.py", "step", *map(str, flags), "--json", path]
        subprocess.run(
            ["bash", "-c", read_settings + 'exec "$@"', "bash", *command], cwd=ROOT, env=environment, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return json.loads(Path(path).read_text())["result"]
