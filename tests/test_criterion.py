import math

import pytest
import torch

from data.made_up import GROUND_Z, camera_matrices
from models.criterion import MapCriterion, direction_loss, sigmoid_focal_loss
from models.segmentation import densify, rasterize_in_images, rasterize_on_ground, segmentation_loss
from tests.micro import micro_config, random_batch
from utils.frame import PC_RANGES, denormalize_pts, normalize_pts

PC_RANGE = PC_RANGES["60x30"]


def perfect_outputs(batch, config):
    """Outputs that say what the ground truth says, with near-certain logits."""
    size = (len(batch["targets"]), config.num_instances)
    logits = torch.full((*size, 3), -20.0)
    pts = torch.full((*size, config.num_points, 2), 0.5)
    for sample, target in enumerate(batch["targets"]):
        for g, label in enumerate(target["labels"].tolist()):
            logits[sample, g, label] = 20.0
            pts[sample, g] = target["pts"][g]
    return {"pred_logits": logits, "pred_pts": pts, "aux_outputs": [{"pred_logits": logits, "pred_pts": pts}]}


def test_a_perfect_prediction_costs_nothing_in_any_equivalent_order():
    config = micro_config()
    batch = random_batch(config)
    criterion = MapCriterion(config.num_points, 3, PC_RANGE)
    outputs = perfect_outputs(batch, config)
    for target in batch["targets"]:
        ring = target["closed"]
        # another start for rings, the other direction for open lines
        target["pts"][ring] = torch.cat([target["pts"][ring][:, 1:], target["pts"][ring][:, 1:2]], dim=1)
        target["pts"][~ring] = target["pts"][~ring].flip(1)
    losses = criterion(outputs, batch)
    assert set(losses) == {f"loss_{part}_{head}" for part in ("cls", "pts", "dir") for head in (0, 1)}
    assert all(value.abs() < 1e-5 for value in losses.values()), losses


def test_normalised_by_the_number_of_instances_and_summed_over_coordinates():
    config = micro_config()
    batch = random_batch(config, counts=(2, 2))
    outputs = perfect_outputs(batch, config)
    shifted = outputs["pred_pts"].clone()
    shifted[..., 0] += 0.01
    outputs["pred_pts"] = shifted
    losses = MapCriterion(config.num_points, 3, PC_RANGE)(outputs, batch)
    assert torch.isclose(losses["loss_pts_1"], torch.tensor(0.01 * config.num_points), atol=1e-4)
    assert losses["loss_pts_0"] < 1e-5


def test_the_losses_of_the_parts_of_a_batch_add_up_to_those_of_the_whole():
    config = micro_config()
    batch = random_batch(config, counts=(3, 0, 1))
    torch.manual_seed(0)
    shapes = {"pred_logits": (3, config.num_instances, 3), "pred_pts": (3, config.num_instances, config.num_points, 2),
              "seg_logits": (3, 6, 3, 2, 4), "scene_logits": (3, 6, 3, 2, 4), "ground_logits": (3, 3, 8, 4)}
    outputs = {name: torch.rand(shape) for name, shape in shapes.items()}
    criterion = MapCriterion(config.num_points, 3, PC_RANGE)
    whole = criterion(outputs | {"aux_outputs": []}, batch)
    summed = dict.fromkeys(whole, 0.0)
    for part in (slice(0, 1), slice(1, 2), slice(2, 3)):
        of_part = {key: value[part] for key, value in batch.items()}
        found = criterion({key: value[part] for key, value in outputs.items()} | {"aux_outputs": []}, of_part, 4, 3)
        summed = {name: summed[name] + value for name, value in found.items()}
    for name, value in whole.items():
        torch.testing.assert_close(summed[name], value, rtol=1e-6, atol=1e-6)


def test_a_batch_without_ground_truth_still_reaches_points_and_classes():
    config = micro_config()
    batch = random_batch(config, counts=(0, 0))
    logits = torch.zeros(2, config.num_instances, 3, requires_grad=True)
    pts = torch.rand(2, config.num_instances, config.num_points, 2).requires_grad_()
    criterion = MapCriterion(config.num_points, 3, PC_RANGE)
    loss = criterion.total(criterion({"pred_logits": logits, "pred_pts": pts, "aux_outputs": []}, batch))
    loss.backward()
    assert torch.isfinite(loss) and logits.grad.abs().sum() > 0
    assert pts.grad is not None and (pts.grad == 0).all()


def test_focal_loss_equals_its_formula():
    logits, wanted = torch.tensor([0.3, -1.2]), torch.tensor([1.0, 0.0])
    p = logits.sigmoid()
    expected = torch.stack([-0.25 * (1 - p[0]) ** 2 * p[0].log(), -0.75 * p[1] ** 2 * (1 - p[1]).log()])
    assert torch.allclose(sigmoid_focal_loss(logits, wanted), expected)


def test_direction_loss_is_zero_along_two_against_and_finite_for_repeated_points():
    line = torch.tensor([[[0.0, 0.0], [5.0, 0.0], [10.0, 0.0]]])
    assert torch.allclose(direction_loss(line * 0.5, line), torch.zeros(1, 2))
    assert torch.allclose(direction_loss(line.flip(1), line), torch.full((1, 2), 2.0))
    short = line * 1e-2  # edges of 5 cm
    assert torch.allclose(direction_loss(short, short), torch.zeros(1, 2), atol=1e-6)
    near = (line * 1e-7).requires_grad_()  # points in one place: a bounded gradient
    direction_loss(near, line).sum().backward()
    assert near.grad.norm() < 1000
    still = torch.zeros(1, 3, 2, requires_grad=True)
    direction_loss(still, torch.zeros(1, 3, 2)).sum().backward()
    assert torch.isfinite(still.grad).all()


def test_directions_are_those_of_metres_in_a_range_that_is_longer_than_wide():
    criterion = MapCriterion(4, 3, PC_RANGE)
    angle = math.radians(10)
    for heading in (0.0, math.pi / 2):  # a line that is 10 degrees off costs the same along the road and across it
        edges = [torch.tensor([math.cos(a), math.sin(a)]) for a in (heading, heading + angle)]
        lines_m = [torch.arange(4.0)[:, None] * edge for edge in edges]
        wanted, found = (normalize_pts(line, PC_RANGE)[None] for line in lines_m)
        cost = criterion._direction_loss(found, wanted)
        assert torch.allclose(cost, torch.full((1, 3), 1 - math.cos(angle)), atol=1e-4)


def test_segmentation_marks_the_patches_that_a_line_projects_to():
    image, grid = (32, 64), (4, 8)
    lidar2img = camera_matrices(image)[None]
    line = torch.tensor([[[0.5, 0.55], [0.5, 0.95]]])  # straight ahead of the car, 3 m to 27 m
    target = {"labels": torch.tensor([2]), "pts": line, "closed": torch.tensor([False])}
    masks = rasterize_in_images([target], lidar2img, torch.tensor([GROUND_Z]), grid, image, PC_RANGE, 3)
    expected = torch.zeros(4, 8)
    for x, y in denormalize_pts(densify(line, 50), PC_RANGE)[0].tolist():
        u, v, depth = (lidar2img[0, 0] @ torch.tensor([x, y, GROUND_Z, 1.0]))[:3].tolist()
        column, row = int((u / depth + 0.5) // 8), int((v / depth + 0.5) // 8)
        if 0 <= column < 8 and 0 <= row < 4:
            expected[row, column] = 1.0
    assert expected.sum() >= 2
    assert torch.equal(masks[0, 0, 2], expected)
    assert masks.sum() == expected.sum(), "no other camera and no other class"


def test_segmentation_from_above_marks_the_cells_under_a_line():
    line = torch.tensor([[[0.05, 0.25], [0.95, 0.25]]])
    target = {"labels": torch.tensor([1]), "pts": line, "closed": torch.tensor([False])}
    masks = rasterize_on_ground([target], (4, 10), 3)
    expected = torch.zeros(1, 3, 4, 10)
    expected[0, 1, 1, :] = 1.0
    assert torch.equal(masks, expected)


def test_each_loss_has_its_weight():
    weights = {"cls_0": 2, "pts_3": 5, "dir_12": 0.005, "noisy_cls": 2, "noisy_pts": 5, "noisy_dir": 0.005, "seg": 8,
               "scene": 8, "ground": 8}
    criterion = MapCriterion(4, 3, PC_RANGE)
    for name, weight in weights.items():
        assert criterion.total({f"loss_{name}": torch.tensor(1.0)}).item() == pytest.approx(weight)
    criterion = MapCriterion(4, 3, PC_RANGE, segmentation_weight=3.0)
    for name, weight in weights.items():
        chosen = 3 if name in ("seg", "scene", "ground") else weight
        assert criterion.total({f"loss_{name}": torch.tensor(1.0)}).item() == pytest.approx(chosen)


def test_segmentation_loss_is_cross_entropy_plus_dice_of_each_sample():
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    logits = torch.zeros(2, 1, 2, 2)  # a probability of 1/2 everywhere: overlaps of 1 and 1/2, sums of 2
    expected = [math.log(2) + 1 - (2 * 1 + 1) / (2 + 2 + 1), math.log(2) + 1 - (2 * 0.5 + 1) / (2 + 1 + 1)]
    assert segmentation_loss(logits, masks).tolist() == pytest.approx(expected)
    two_classes = [torch.cat([x, x.flip(0)], dim=1) for x in (logits, masks)]
    assert segmentation_loss(*two_classes).tolist() == pytest.approx([sum(expected) / 2] * 2), "a mean over classes"
