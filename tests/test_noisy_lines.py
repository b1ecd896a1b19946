import numpy as np
import torch

from data.noisy_lines import POINT_M, SHIFT_M, noisy_copies
from models.criterion import MapCriterion
from models.detector import build_detector, stack_noisy
from tests.micro import micro_config, random_batch

LINES = np.array([[[0.0, -10.0], [0.0, 0.0], [0.0, 10.0]], [[-5.0, 3.0], [0.0, 3.0], [5.0, 3.0]]])


def with_noisy(batch: dict, copies: int = 2) -> dict:
    """The batch with noisy copies that are the lines themselves, a little shifted."""
    for target in batch["targets"]:
        target["noisy_pts"] = (target["pts"][None] + 0.01).clamp(0, 1).repeat(copies, 1, 1, 1)
    return batch


def test_copies_lie_around_their_lines_as_far_as_the_constants_say():
    noisy = noisy_copies(LINES, 4000, np.random.default_rng(0))
    assert noisy.shape == (4000, 2, 3, 2)
    np.testing.assert_allclose(noisy.mean(0), LINES, atol=0.2)
    centres = noisy.mean(2) - LINES.mean(1)
    np.testing.assert_allclose(centres.std(0), np.hypot(SHIFT_M, POINT_M / np.sqrt(3)), rtol=0.05)
    lengths = np.linalg.norm(noisy[:, 0, 2] - noisy[:, 0, 0], axis=1)
    assert abs(lengths.mean() - 20) < 0.2 and 1.5 < lengths.std() < 2.5


def test_the_generator_decides_everything():
    again = [noisy_copies(LINES, 2, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(again[0], again[1]) and not np.array_equal(again[0], again[2])
    assert noisy_copies(LINES[:0], 2, np.random.default_rng(0)).shape == (2, 0, 3, 2)


def test_stacked_copies_stand_where_the_losses_look_for_them():
    """Lines that are put back exactly cost nothing, whatever the padding between samples with fewer."""
    config = micro_config()
    batch = with_noisy(random_batch(config, counts=(3, 0, 1)))
    assert stack_noisy(batch["targets"])[0].shape == (3, 6, config.num_points, 2)
    for target in batch["targets"]:
        target["noisy_pts"] = target["pts"][None].repeat(2, 1, 1, 1)
    pts = stack_noisy(batch["targets"])[0]
    labels = torch.zeros(3, 6, dtype=torch.long)
    for row, target in zip(labels, batch["targets"], strict=True):
        row.view(2, 3)[:, : len(target["labels"])] = target["labels"]
    logits = torch.nn.functional.one_hot(labels, 3) * 40.0 - 20.0
    size = (3, config.num_instances)
    outputs = {"pred_logits": torch.zeros(*size, 3), "pred_pts": torch.full((*size, config.num_points, 2), 0.5),
               "aux_outputs": [], "noisy_outputs": [{"pred_logits": logits, "pred_pts": pts}]}
    criterion = MapCriterion(config.num_points, 3, config.pc_range)
    found = criterion(outputs, batch)
    assert all(found[f"loss_noisy_{part}"] < 1e-5 for part in ("cls", "pts", "dir")), found
    outputs["noisy_outputs"][0]["pred_pts"] = pts + torch.tensor([0.01, 0.0])
    found = criterion(outputs, batch)
    torch.testing.assert_close(found["loss_noisy_pts"], torch.tensor(0.01 * config.num_points))


def test_a_sample_is_put_back_alike_whatever_stands_beside_it():
    config = micro_config()
    torch.manual_seed(0)
    model = build_detector(config).train()
    batch = with_noisy(random_batch(config, counts=(2, 4)))
    alone = {key: value[:1] for key, value in batch.items()}
    beside, found = model(batch)["noisy_outputs"], model(alone)["noisy_outputs"]
    for layer, other in zip(beside, found, strict=True):
        of_first = layer["pred_pts"][0].unflatten(0, (2, 4))[:, :2].flatten(0, 1)
        torch.testing.assert_close(of_first, other["pred_pts"][0], rtol=0, atol=1e-6)


def test_in_training_they_reach_the_decoder_and_not_the_queries():
    config = micro_config()
    torch.manual_seed(0)
    model = build_detector(config).train()
    batch = with_noisy(random_batch(config))
    losses = MapCriterion(config.num_points, 3, config.pc_range)(model(batch), batch)
    sum(value for name, value in losses.items() if name.startswith("loss_noisy")).backward()
    assert model.decoder.layers[0].to_ground.output[1].weight.grad.abs().sum() > 0
    assert model.map_queries.embeddings.grad is None or model.map_queries.embeddings.grad.abs().sum() == 0
    assert "noisy_outputs" not in model.eval()(batch)


def test_a_batch_without_ground_truth_costs_nothing_and_stays_finite():
    config = micro_config()
    model = build_detector(config).train()
    batch = with_noisy(random_batch(config, counts=(0, 0)))
    losses = MapCriterion(config.num_points, 3, config.pc_range)(model(batch), batch)
    assert all(losses[f"loss_noisy_{part}"] == 0 for part in ("cls", "pts", "dir"))
