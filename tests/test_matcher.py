import itertools

import pytest
import torch

from data.made_up import random_target
from models.matcher import (
    HungarianMatcher,
    focal_class_cost,
    least_of_all_orders,
    least_of_needed_orders,
    order_table,
    pad_targets,
)


def test_orders_of_a_ring_and_of_an_open_line():
    table = order_table(4)
    rings = {tuple(row) for row in table[1].tolist()}
    assert rings == {(0, 1, 2, 0), (1, 2, 0, 1), (2, 0, 1, 2), (0, 2, 1, 0), (1, 0, 2, 1), (2, 1, 0, 2)}
    assert {tuple(row) for row in table[0].tolist()} == {(0, 1, 2, 3), (3, 2, 1, 0)}


def test_orders_of_the_shortest_line():
    """Two points: an open line has two orders, and a ring of two equal points reads its first twice."""
    assert order_table(2).tolist() == [[[0, 1], [1, 0]], [[0, 0], [0, 0]]]


def test_lines_and_rings_shrunk_to_a_point_are_matched():
    target = {
        "labels": torch.tensor([0, 1]),
        "pts": torch.tensor([0.25, 0.75])[:, None, None].expand(2, 4, 2),
        "closed": torch.tensor([False, True]),
    }
    pts = torch.tensor([0.74, 0.5, 0.26])[:, None, None].expand(1, 1, 3, 4, 2)
    matches = HungarianMatcher()(torch.zeros(1, 1, 3, 3), pts, pad_targets([target], 4, torch.device("cpu")))
    assert sorted(zip(matches.instance.tolist(), matches.target.tolist(), strict=True)) == [(0, 1), (2, 0)]


@pytest.mark.parametrize("least_distances", [least_of_needed_orders, least_of_all_orders])  # of CPUs and of GPUs
def test_least_distances_are_those_over_every_order_of_the_table(least_distances):
    generator = torch.Generator().manual_seed(1)
    targets = [random_target(generator, count, 5) for count in (6, 0, 3)]
    targets[0]["closed"][:] = torch.tensor([True, False, False, True, True, False])
    targets[2]["closed"][:] = False  # a sample without a ring
    padded = pad_targets(targets, 5, torch.device("cpu"))
    assert padded.counts == [6, 0, 3]
    pts = torch.rand(2, 3, 4, 5, 2, generator=generator)
    distance, order = least_distances(pts, padded)
    assert distance.shape == order.shape == (2, 3, 4, 6)
    for sample, target in enumerate(targets):
        for g, (line, closed) in enumerate(zip(target["pts"], target["closed"].tolist(), strict=True)):
            orders = line[order_table(5)[int(closed)]]  # [O, P, 2]
            each = (pts[:, sample, :, None] - orders).abs().sum((3, 4))  # [L, I, O]
            torch.testing.assert_close(distance[:, sample, :, g], each.min(-1).values)
            chosen = each.gather(2, order[:, sample, :, g, None])[..., 0]
            torch.testing.assert_close(chosen, each.min(-1).values)


def test_matching_equals_brute_force():
    generator = torch.Generator().manual_seed(0)
    num_points = 4
    targets = [random_target(generator, count, num_points) for count in (3, 0, 2)]
    logits = torch.randn(2, 3, 4, 3, generator=generator)
    pts = torch.rand(2, 3, 4, num_points, 2, generator=generator)
    padded = pad_targets(targets, num_points, torch.device("cpu"))
    matches = HungarianMatcher()(logits, pts, padded)
    table = order_table(num_points)
    for head in range(2):
        for sample, target in enumerate(targets):
            count = len(target["labels"])
            cost = torch.zeros(4, count)
            for i, g in itertools.product(range(4), range(count)):
                orders = target["pts"][g][table[int(target["closed"][g])]]
                l1 = (pts[head, sample, i] - orders).abs().sum((1, 2)).min()
                cost[i, g] = 2 * focal_class_cost(logits)[head, sample, i, target["labels"][g]] + 5 * l1
            here = (matches.head == head) & (matches.sample == sample)
            found = cost[matches.instance[here], matches.target[here]].sum()
            best = min(
                sum(cost[i, g] for g, i in enumerate(chosen)) for chosen in itertools.permutations(range(4), count)
            )
            assert here.sum() == count
            assert torch.isclose(found, torch.as_tensor(best, dtype=torch.float32), atol=1e-5)


def test_no_ground_truth_anywhere():
    empty = random_target(torch.Generator(), 0, 4)
    padded = pad_targets([empty, empty], 4, torch.device("cpu"))
    matches = HungarianMatcher()(torch.zeros(2, 2, 3, 3), torch.zeros(2, 2, 3, 4, 2), padded)
    assert len(matches.head) == 0


def test_rounding_does_not_choose_between_equal_orders():
    """A prediction to one side of a line is equally far from it in both directions: the first is taken."""
    line = torch.tensor([[0.5, 0.5], [0.6, 0.7], [0.7, 0.9]])
    targets = pad_targets([{"labels": torch.tensor([0]), "pts": line[None], "closed": torch.tensor([False])}], 3,
                          torch.device("cpu"))  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        pts = torch.rand(1, 1, 1, 3, 2, generator=generator) * 0.4
        assert HungarianMatcher()(torch.zeros(1, 1, 1, 3), pts, targets).order.item() == 0
