import torch
from torch.nn import functional as F

from models.decoder import GroundSampling, initial_offsets, initial_references, inverse_sigmoid
from utils.frame import PC_RANGES, normalize_pts

PC_RANGE = PC_RANGES["60x30"]


def test_points_read_the_ground_where_they_and_their_offsets_are():
    """With features that are the cells' own coordinates, a point reads back its metres plus each offset."""
    rows, columns = 60, 30
    y, x = torch.meshgrid(torch.arange(rows) - 29.5, torch.arange(columns) - 14.5, indexing="ij")  # cells of 1 m
    ground = torch.stack([x, y])[None]  # [1, 2, Y, X]
    look = GroundSampling(dim=4, feature_dim=2, num_offsets=5, reach_m=3.0, pc_range=PC_RANGE)
    seen = []
    look.output[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pts_m = torch.tensor([[[2.5, -7.25], [-6.0, 11.0]]])
    look(torch.zeros(1, 2, 4), normalize_pts(pts_m, PC_RANGE), ground)
    expected = pts_m[:, :, None] + initial_offsets(5, 3.0)
    assert torch.allclose(seen[0].view(1, 2, 5, 2), expected, atol=1e-4)


def test_offsets_start_at_the_point_and_reach_as_far_as_asked():
    offsets = initial_offsets(16, 8.0)
    assert torch.equal(offsets[0], torch.zeros(2)) and torch.isclose(offsets[-1].norm(), torch.tensor(8.0))
    assert F.pdist(offsets).min() > 0.5


def test_references_are_spread_and_inside():
    references = initial_references(50, 20)
    assert references.shape == (50, 20, 2) and references.min() > 0 and references.max() < 1
    distance = torch.cdist(references.flatten(1), references.flatten(1)) + torch.eye(50) * 9
    assert distance.min() > 0.05, "no two lines start alike"
    centres = references.mean(1)
    assert all(((centres > low) & (centres < low + 0.5)).all(1).sum() >= 8 for low in (0.0, 0.5))


def test_inverse_sigmoid_inverts():
    x = torch.linspace(0.01, 0.99, 9)
    assert torch.allclose(inverse_sigmoid(x).sigmoid(), x, atol=1e-6)
    assert torch.isfinite(inverse_sigmoid(torch.tensor([0.0, 1.0]))).all()
