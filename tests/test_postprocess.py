"""Model outputs to scored vectors in metres."""

import numpy as np
import pytest
import torch

from evaluation.postprocess import outputs_to_vectors
from utils.frame import PC_RANGES, normalize_pts


def test_every_instance_once_with_its_best_class_in_metres():
    logits = torch.tensor([[[2.0, -1.0, 0.5], [-6.0, -4.0, -5.0]], [[-9.0, -9.0, -8.0], [0.0, 3.0, 1.0]]])
    pts_m = torch.tensor([[-15.0, -30.0], [0.0, 0.0], [-7.5, 30.0]]).expand(2, 2, 3, 2)
    pts = normalize_pts(pts_m, PC_RANGES["60x30"])
    samples = outputs_to_vectors(logits, pts, PC_RANGES["60x30"], ["a", "b"])
    assert [vectors.labels.tolist() for vectors in samples] == [[0, 1], [2, 1]]
    expected = torch.tensor([[2.0, -4.0], [-8.0, 3.0]]).sigmoid().numpy()
    np.testing.assert_allclose(np.stack([vectors.scores for vectors in samples]), expected, rtol=1e-6)
    for vectors in samples:
        assert len(vectors) == 2  # low scores stay in
        np.testing.assert_allclose(vectors.pts_m[1], pts_m[0, 1].numpy(), atol=1e-5)


def test_bends_get_points_between_that_stay_inside_the_range():
    angle = torch.linspace(0, torch.pi / 2, 10)
    pts_m = torch.stack([15 - 20 * (1 - angle.cos()), 20 * angle.sin() - 10], dim=1)  # leaves the border of the range
    pts = normalize_pts(torch.stack([pts_m, pts_m.flip(0)]), PC_RANGES["60x30"])[None]
    (vectors,) = outputs_to_vectors(torch.zeros(1, 2, 3), pts, PC_RANGES["60x30"], ["a"])
    for line in vectors.pts_m:
        assert len(line) == 37 and line.dtype == np.float32 and line[:, 0].max() <= 15
        np.testing.assert_allclose(np.hypot(*(line - [-5, -10]).T), 20, atol=0.005)


def test_half_precision_outputs_that_need_gradients():
    logits = torch.zeros(1, 4, 3, dtype=torch.float16, requires_grad=True)
    vectors = outputs_to_vectors(logits, torch.full((1, 4, 5, 2), 0.5).half(), PC_RANGES["100x50"], ["a"])[0]
    assert vectors.scores.dtype == np.float32 and np.all(vectors.scores == 0.5)
    assert np.all(np.stack(vectors.pts_m) == 0.0)


def test_empty_batch_and_outputs_that_are_not_finite():
    assert outputs_to_vectors(torch.zeros(0, 4, 3), torch.zeros(0, 4, 5, 2), PC_RANGES["60x30"], []) == []
    logits = torch.zeros(2, 4, 3)
    logits[1, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="sample b: .*not finite.*--precision bf16"):
        outputs_to_vectors(logits, torch.zeros(2, 4, 5, 2), PC_RANGES["60x30"], ["a", "b"])
