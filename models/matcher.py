"""Hungarian matching of predictions and ground truth over all equivalent point orders (MapTR, arXiv 2208.14437)."""

# L decoder heads, B batch, I instances, G ground-truth instances (padded), O orders, P points, C classes

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
TIE = 1e-5  # of summed distances in [0, 1]; rounding is some 1e-6


def order_table(num_points: int) -> Tensor:
    """Equivalent orders as index rows, int64 [2, O, P] with O = 2 * (P - 1): row 0 open lines, row 1 rings.

    An open line reads the same in two directions; a ring (its last point repeats the first) also from every
    start. Open lines fill the unused orders with their first.
    """
    distinct = num_points - 1
    start = torch.arange(distinct)[:, None]
    step = torch.arange(num_points)[None, :]
    ring = torch.cat([(start + step) % distinct, (start - step) % distinct])  # [O, P]
    forward = torch.arange(num_points).expand(2 * distinct, -1).clone()
    forward[1] = forward[1].flip(0)
    return torch.stack([forward, ring])


@dataclass
class PaddedTargets:
    """Ground truth of a batch as tensors: labels [B, G], ordered_pts [B, G, O, P, 2] in [0, 1], closed [B, G].

    counts: how many of the G are real, for each sample; known without asking the device.
    """

    labels: Tensor
    ordered_pts: Tensor
    closed: Tensor
    counts: list[int]


def pad_targets(targets: list[dict[str, Tensor]], num_points: int, device: torch.device) -> PaddedTargets:
    """Ragged targets (labels [G], pts [G, P, 2], closed [G]) to padded tensors with all equivalent orders."""
    table = order_table(num_points).to(device)
    counts = [len(target["labels"]) for target in targets]
    most = max(counts, default=0)
    labels = torch.zeros(len(targets), most, dtype=torch.long, device=device)
    ordered = torch.zeros(len(targets), most, table.shape[1], num_points, 2, device=device)
    closed = torch.zeros(len(targets), most, dtype=torch.bool, device=device)
    for sample, (target, count) in enumerate(zip(targets, counts, strict=True)):
        labels[sample, :count] = target["labels"]
        closed[sample, :count] = target["closed"]
        order = table[target["closed"].long()]  # [G, O, P]
        instance = torch.arange(count, device=device)[:, None, None]
        ordered[sample, :count] = target["pts"][instance, order]  # [G, O, P, 2]
    return PaddedTargets(labels, ordered, closed, counts)


def focal_class_cost(logits: Tensor) -> Tensor:
    """Cost of calling a prediction each class, same shape as logits: focal loss as positive minus as negative."""
    probability = logits.sigmoid()
    positive = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * -torch.log(probability + 1e-8)
    negative = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * -torch.log(1 - probability + 1e-8)
    return positive - negative


def _first_least(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest of the orders' distances [..., O], and the first order that has it but for rounding.

    A line that lies to one side of a target is equally far from it in all orders: rounding must not choose.
    """
    least = distance.amin(-1)
    return least, (distance <= least[..., None] + TIE).int().argmax(-1)


def least_distances(pts: Tensor, targets: PaddedTargets) -> tuple[Tensor, Tensor]:
    """L1 distance of predictions [L, B, I, P, 2] to each target in its nearest order, and that order: [L, B, I, G].

    Where it is padded, G has distances that mean nothing.
    """
    return (least_of_needed_orders if pts.device.type == "cpu" else least_of_all_orders)(pts, targets)


def least_of_all_orders(pts: Tensor, targets: PaddedTargets) -> tuple[Tensor, Tensor]:
    """least_distances in one piece, for a GPU: to ask which lines are open would be one more wait for the device."""
    heads, ordered = len(pts), targets.ordered_pts.flatten(3)  # [B, G, O, 2P]
    wanted = ordered.flatten(1, 2).expand(heads, -1, -1, -1)  # [L, B, G*O, 2P]
    distance = torch.cdist(pts.flatten(3), wanted, p=1.0)  # [L, B, I, G*O]
    return _first_least(distance.unflatten(3, ordered.shape[1:3]))


def least_of_needed_orders(pts: Tensor, targets: PaddedTargets) -> tuple[Tensor, Tensor]:
    """least_distances without the orders that open lines only repeat, which are most of its time on a CPU."""
    heads, batch, instances = pts.shape[:3]
    pts, ordered = pts.flatten(3), targets.ordered_pts.flatten(3)  # [L, B, I, 2P], [B, G, O, 2P]
    distance = pts.new_zeros(heads, batch, instances, ordered.shape[1])
    order = torch.zeros_like(distance, dtype=torch.long)
    for sample, count in enumerate(targets.counts):
        closed = targets.closed[sample, :count]
        for kind, orders in ((~closed, 2), (closed, ordered.shape[2])):
            which = kind.nonzero()[:, 0]
            wanted = ordered[sample, which, :orders].flatten(0, 1)  # [G' * orders, 2P]
            to_orders = torch.cdist(pts[:, sample].flatten(0, 1), wanted, p=1.0)
            least, nearest = _first_least(to_orders.view(heads, instances, len(which), orders))
            distance[:, sample, :, which], order[:, sample, :, which] = least, nearest
    return distance, order


@dataclass
class Matches:
    """Matched pairs of all heads, each tensor [M]: head, sample, instance, ground-truth index, order."""

    head: Tensor
    sample: Tensor
    instance: Tensor
    target: Tensor
    order: Tensor


class HungarianMatcher:
    """One-to-one assignment of least cost; all heads and samples in one cost tensor and one copy to the host."""

    def __init__(self, cost_class: float = 2.0, cost_pts: float = 5.0):
        self.cost_class = cost_class
        self.cost_pts = cost_pts

    @torch.no_grad()
    def __call__(self, pred_logits: Tensor, pred_pts: Tensor, targets: PaddedTargets) -> Matches:
        """pred_logits [L, B, I, C] and pred_pts [L, B, I, P, 2] in [0, 1] against the padded targets.

        Raises FloatingPointError when a prediction that is held against ground truth is not finite.
        """
        device = pred_logits.device
        heads, batch, instances = pred_logits.shape[:3]
        if targets.labels.shape[1] == 0:
            none = torch.zeros(0, dtype=torch.long, device=device)
            return Matches(none, none, none, none, none)
        distance, order = least_distances(pred_pts.float(), targets)  # [L, B, I, G]
        class_cost = focal_class_cost(pred_logits.float()).gather(
            3, targets.labels[None, :, None, :].expand(heads, -1, instances, -1)
        )
        cost = (self.cost_class * class_cost + self.cost_pts * distance).cpu().numpy()
        if not np.isfinite(cost).all():
            raise FloatingPointError("the predictions are not finite")
        rows = []
        for head in range(heads):
            for sample, count in enumerate(targets.counts):
                instance, target = linear_sum_assignment(cost[head, sample, :, :count])
                rows += [(head, sample, i, t) for i, t in zip(instance.tolist(), target.tolist(), strict=True)]
        index = torch.tensor(rows, dtype=torch.long, device=device).reshape(-1, 4).unbind(1)
        return Matches(*index, order=order[index])
