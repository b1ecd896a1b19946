import pytest
import torch
from torch.nn import functional as F

from data.made_up import GROUND_Z, camera_matrices
from models.projection import project_to_cameras, sample_cameras

IMAGE = (32, 64)


def test_projection_agrees_with_the_matrix():
    lidar2img = camera_matrices(IMAGE)[None]
    points = torch.tensor([[[1.0, 8.0, GROUND_Z], [0.5, -6.0, GROUND_Z]]])
    grid, visible = project_to_cameras(points, lidar2img, IMAGE)
    assert visible[0, :, 0].nonzero().flatten().tolist() == [0], "8 m ahead: the front camera alone"
    assert visible[0, :, 1].nonzero().flatten().tolist() == [3], "6 m behind: the rear camera alone"
    u, v, depth = (lidar2img[0, 0] @ torch.tensor([1.0, 8.0, GROUND_Z, 1.0]))[:3]
    pixel = (grid[0, 0, 0] + 1) / 2 * torch.tensor([64.0, 32.0]) - 0.5
    assert torch.allclose(pixel, torch.stack([u, v]) / depth, atol=1e-4)


def test_sampling_takes_the_camera_that_sees_the_point_nearest_its_centre():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 5, 4, 8)  # [B, V, C, h, w]
    grid = torch.rand(2, 3, 7, 2) * 1.4 - 0.7  # inside, away from the border where padding decides
    visible = torch.zeros(2, 3, 7, dtype=torch.bool)
    visible[:, 0, :3] = True
    visible[:, 2, 2:5] = True  # point 2 is seen twice, points 5 and 6 by nobody
    grid[:, 0, 2], grid[:, 2, 2] = 0.6, 0.1
    sampled = sample_cameras(features, grid, visible)
    every = F.grid_sample(features.flatten(0, 1), grid.flatten(0, 1)[:, :, None], align_corners=False)
    every = every[..., 0].view(2, 3, 5, 7)
    expected = torch.cat([every[:, 0, :, :2], every[:, 2, :, 2:5], torch.zeros(2, 5, 2)], dim=2)
    assert torch.allclose(sampled, expected, atol=1e-5)


def test_sampling_a_colour_where_a_point_projects():
    """Paint the pixel a ground point projects to; sampling the image at the point returns the paint."""
    lidar2img = camera_matrices(IMAGE)[None]
    point = torch.tensor([[[1.0, 8.0, GROUND_Z]]])
    u, v, depth = (lidar2img[0, 0] @ torch.tensor([1.0, 8.0, GROUND_Z, 1.0]))[:3]
    image = torch.zeros(1, 6, 1, *IMAGE)
    column, row = int((u / depth).floor()), int((v / depth).floor())
    image[0, 0, 0, row : row + 2, column : column + 2] = 1.0  # the four pixels around the projection
    sampled = sample_cameras(image, *project_to_cameras(point, lidar2img, IMAGE))
    assert sampled.item() == pytest.approx(1.0, abs=1e-3)
