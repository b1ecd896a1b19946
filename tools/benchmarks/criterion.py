"""Matcher and losses of all heads, forward and backward: ms, beside per-sample loops, and the share of a training step.

The yardstick is the criterion written the usual way: for each head and each sample a cost matrix, filled by a loop over
the ground-truth instances and their equivalent orders, one assignment and one set of losses. Its second variant takes
all orders of a sample's instances in one distance matrix, as MapTR's matcher does. Both find the same losses. The limit
is what no way can do without: torch's distances and SciPy's assignments of the very same numbers, and nothing else.
"""

import argparse
from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from data.made_up import random_batch
from evaluation.inference import move_batch
from models import matcher
from models.config import ModelConfig
from models.criterion import MapCriterion, direction_loss, sigmoid_focal_loss
from models.detector import build_detector
from models.matcher import HungarianMatcher, focal_class_cost
from tools.benchmarks.common import make_again, recorded_calls, rounds, spread
from tools.benchmarks.full_model import add_model_arguments, config_from, made_up_batch
from tools.benchmarks.step import measure_step
from utils.device import PRECISIONS, default_device, default_precision
from utils.errors import UserError
from utils.frame import CLASSES, PC_RANGES, denormalize_pts

# L heads, B batch, I instances, G ground-truth instances, O orders, P points, C classes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--instances", type=int, default=50, help="predictions a sample")
    parser.add_argument("--points", type=int, default=20, help="of an instance; a ring has 2 * (points - 1) orders")
    parser.add_argument("--ground-truth", type=int, default=30, help="at most this many instances a sample")
    parser.add_argument("--heads", type=int, default=7, help="the decoder's layers and the LLM's own prediction")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    step = parser.add_argument_group("the training step whose share is measured")
    step.add_argument("--steps", type=int, default=3, help="steps to time; 0: none")
    add_model_arguments(step)
    parser.set_defaults(preset="tiny")


def run(args: argparse.Namespace) -> dict:
    """Measure and print; returns times in milliseconds, ratios, and the share of a step."""
    if min(args.batch_size, args.instances, args.ground_truth, args.heads, args.repeats) < 1 or args.points < 4:
        raise UserError(
            "--batch-size, --instances, --ground-truth, --heads, --repeats: expected at least 1, --points at least 4"
        )
    if min(args.warmup, args.steps) < 0:
        raise UserError(f"--warmup {args.warmup} --steps {args.steps}: expected at least 0")
    device = default_device()
    outputs, batch = made_up_outputs(args)
    outputs, batch = to_device(outputs, device), move_batch(batch, device)
    criterion = MapCriterion(args.points, len(CLASSES), PC_RANGES["60x30"])
    ways: dict[str, Callable[[dict, dict], dict[str, Tensor]]] = {
        "ms": criterion,
        "yardstick_ms": lambda outputs, batch: plain_losses(outputs, batch, distances_one_by_one),
        "matrix_yardstick_ms": lambda outputs, batch: plain_losses(outputs, batch, distances_at_once),
    }
    work = {name: lambda way=way: forward_and_backward(way, criterion, outputs, batch) for name, way in ways.items()}
    with recorded_calls(torch, ["cdist"]) as distances, recorded_calls(matcher, ["linear_sum_assignment"]) as solved:
        criterion(outputs, batch)
    work["limit_ms"] = lambda: make_again_on(device, [*distances, *solved])
    seconds, ratios = rounds(work, args.warmup, args.repeats)
    result: dict = {name: spread(1e3 * values) for name, values in seconds.items()}
    result["yardstick_ratio"], result["matrix_yardstick_ratio"] = (
        ratios(name, "ms") for name in ("yardstick_ms", "matrix_yardstick_ms")
    )
    result["limit_ratio"] = ratios("ms", "limit_ms")
    print(
        f"criterion, forward and backward: {result['ms']['median']:.1f} ms (10 to 90 %: {result['ms']['p10']:.1f} to "
        f"{result['ms']['p90']:.1f}) for {args.heads} heads, {args.batch_size} samples of {args.instances} instances "
        f"with {args.points} points, at most {args.ground_truth} ground-truth instances, on {device}\n"
        f"sample by sample and order by order: {result['yardstick_ms']['median']:.0f} ms, "
        f"{result['yardstick_ratio']['median']:.1f} times as long; sample by sample with all orders in one matrix: "
        f"{result['matrix_yardstick_ms']['median']:.1f} ms, {result['matrix_yardstick_ratio']['median']:.1f} times\n"
        f"distances and assignments alone: {result['limit_ms']['median']:.1f} ms; the criterion takes "
        f"{result['limit_ratio']['median']:.1f} times as long"
    )
    if args.steps:
        result["step"] = share_of_step(config_from(args), args)
    return result


def share_of_step(config: ModelConfig, args: argparse.Namespace) -> dict:
    """Print and return what the criterion, segmentation included, takes of a real training step."""
    device = default_device()
    dtype = PRECISIONS[default_precision(device.type == "cuda")]
    batch = move_batch(made_up_batch(config, args.batch_size), device)
    step_s = measure_step(config, batch, dtype, args.steps, warmup=1)["seconds"]["median"]
    model = build_detector(config, device, dtype).train()
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        outputs = to_device(model(batch), device)
    criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
    work = {"criterion": lambda: forward_and_backward(criterion, criterion, outputs, batch)}
    seconds, _ = rounds(work, args.warmup, args.repeats)
    criterion_ms = spread(1e3 * seconds["criterion"])
    found = {"step_ms": 1e3 * step_s, "criterion_ms": criterion_ms, "share": criterion_ms["median"] / (1e3 * step_s)}
    print(
        f"a training step of the {args.preset} preset, batch {args.batch_size}: {found['step_ms']:.0f} ms, of which "
        f"the criterion takes {criterion_ms['median']:.1f} ms, {found['share']:.1%}"
    )
    return found


def made_up_outputs(args: argparse.Namespace) -> tuple[dict, dict]:
    """Random predictions and a batch; the first sample has the full number of instances, the last half as many."""
    counts = torch.linspace(args.ground_truth, (args.ground_truth + 1) // 2, args.batch_size).int().tolist()
    batch = random_batch((4, 4), args.points, tuple(counts), args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    size = (args.batch_size, args.instances)
    heads = [
        {
            "pred_logits": torch.randn(*size, len(CLASSES), generator=generator),
            "pred_pts": torch.rand(*size, args.points, 2, generator=generator),
        }
        for _ in range(args.heads)
    ]
    return {**heads[-1], "aux_outputs": heads[:-1]}, batch


def to_device(outputs: dict, device: torch.device) -> dict:
    """The outputs as leaves that take gradients."""
    moved = {
        name: value.detach().float().to(device).requires_grad_()
        for name, value in outputs.items()
        if isinstance(value, Tensor)
    }
    if "aux_outputs" in outputs:
        moved["aux_outputs"] = [to_device(head, device) for head in outputs["aux_outputs"]]
    return moved


def forward_and_backward(
    losses_of: Callable[[dict, dict], dict[str, Tensor]], criterion: MapCriterion, outputs: dict, batch: dict
) -> None:
    """Losses, their weighted sum and the gradients of the outputs."""
    for head in (outputs, *outputs["aux_outputs"]):
        for value in head.values():
            if isinstance(value, Tensor):
                value.grad = None
    loss = criterion.total(losses_of(outputs, batch))
    loss.backward()
    if loss.device.type == "cuda":
        torch.cuda.synchronize()


def make_again_on(device: torch.device, calls: list[Callable[[], object]]) -> None:
    """Make recorded calls without gradients and wait for the device, as the matcher has to."""
    with torch.no_grad():
        make_again(calls)
    if device.type == "cuda":
        torch.cuda.synchronize()


def plain_losses(
    outputs: dict, batch: dict, distances: Callable[[Tensor, list[Tensor]], list[Tensor]]
) -> dict[str, Tensor]:
    """MapCriterion's losses of the instances: one head after the other, its samples matched one after the other."""
    targets = batch["targets"]
    orders = [
        [equivalent_orders(line, closed) for line, closed in zip(t["pts"], t["closed"].tolist(), strict=True)]
        for t in targets
    ]
    num_instances = max(sum(len(target["labels"]) for target in targets), 1)
    losses = {}
    for number, head in enumerate([*outputs["aux_outputs"], outputs]):
        logits, pts = head["pred_logits"], head["pred_pts"]
        wanted_class = torch.zeros_like(logits)
        matched_pts, wanted_pts = [pts[0, :0]], [pts[0, :0].detach()]
        for sample, target in enumerate(targets):
            pairs = matched(logits[sample], pts[sample], target["labels"], orders[sample], distances)
            for i, g, order in pairs:
                wanted_class[sample, i, target["labels"][g]] = 1.0
                wanted_pts.append(orders[sample][g][order][None])
            matched_pts.append(pts[sample, [i for i, _, _ in pairs]])
        found, wanted = torch.cat(matched_pts), torch.cat(wanted_pts)  # [M, P, 2]
        losses[f"loss_cls_{number}"] = sigmoid_focal_loss(logits, wanted_class).sum() / num_instances
        losses[f"loss_pts_{number}"] = (found - wanted).abs().sum() / num_instances
        in_metres = (denormalize_pts(pts, PC_RANGES["60x30"]) for pts in (found, wanted))
        losses[f"loss_dir_{number}"] = direction_loss(*in_metres).sum() / num_instances
    return losses


@torch.no_grad()
def matched(
    logits: Tensor, pts: Tensor, labels: Tensor, orders: list[Tensor],
    distances: Callable[[Tensor, list[Tensor]], list[Tensor]],
) -> list[tuple[int, int, int]]:  # fmt: skip
    """Assignment of least cost of one head on one sample: instance, ground-truth index and order of each pair.

    logits [I, C]; pts [I, P, 2]; labels [G]; orders: of each ground-truth instance, [O, P, 2].
    """
    weights = HungarianMatcher()
    cost, order = pts.new_zeros(len(pts), len(orders)), []
    for g, to_orders in enumerate(distances(pts, orders)):
        least, which = to_orders.min(1)
        order.append(which)
        cost[:, g] = weights.cost_class * focal_class_cost(logits)[:, labels[g]] + weights.cost_pts * least
    pairs = zip(*linear_sum_assignment(cost.cpu().numpy()), strict=True)
    return [(int(i), int(g), int(order[g][i])) for i, g in pairs]


def equivalent_orders(line: Tensor, closed: bool) -> Tensor:
    """A ring [P, 2] from each start in both directions, [O, P, 2]; a line in both, and repeated to as many."""
    distinct = len(line) - 1
    if not closed:
        return torch.stack([line, line.flip(0)] * distinct)
    starts = [line[:-1].roll(-start, 0) for start in range(distinct)]
    rings = [torch.cat([ring, ring[:1]]) for ring in starts]
    return torch.stack(rings + [ring.flip(0) for ring in rings])


def distances_one_by_one(pts: Tensor, orders: list[Tensor]) -> list[Tensor]:
    """L1 distances [I, O] of predictions [I, P, 2] to the orders [O, P, 2] of each instance."""
    return [torch.stack([(pts - order).abs().sum((1, 2)) for order in each], dim=1) for each in orders]


def distances_at_once(pts: Tensor, orders: list[Tensor]) -> list[Tensor]:
    """distances_one_by_one in one distance matrix."""
    if not orders:
        return []
    found = torch.cdist(pts.flatten(1), torch.cat(orders).flatten(1), p=1.0)
    return list(found.split([len(each) for each in orders], dim=1))
