import torch

from data.made_up import GROUND_Z, camera_matrices
from models.geometry_embedding import GeometryEmbedding, ground_intersection, patch_rays
from utils.frame import PC_RANGES, denormalize_pts

GRID, IMAGE = (4, 8), (32, 64)
PC_RANGE = PC_RANGES["60x30"]


def test_ground_points_project_back_to_their_patch_centres():
    lidar2img = camera_matrices(IMAGE)[None]
    rays, centre = patch_rays(lidar2img, GRID, IMAGE)
    points, distance, valid = ground_intersection(rays, centre, torch.tensor([GROUND_Z]), PC_RANGE)
    assert valid.any() and not valid.all(), "some patches look at the road, some at the sky"
    points_m = denormalize_pts(points, PC_RANGE)
    for camera, row, column in valid[0].nonzero().tolist():
        x, y = points_m[0, camera, row, column].tolist()
        image = lidar2img[0, camera] @ torch.tensor([x, y, GROUND_Z, 1.0])
        assert image[2] > 0
        assert torch.allclose(image[:2] / image[2], torch.tensor([column * 8 + 3.5, row * 8 + 3.5]), atol=1e-2)
        assert abs(distance[0, camera, row, column] - torch.tensor([x, y, GROUND_Z]).norm()) < 1e-3


def test_above_the_horizon_nothing_is_valid():
    rays, centre = patch_rays(camera_matrices(IMAGE)[None], GRID, IMAGE)
    points, distance, valid = ground_intersection(rays, centre, torch.tensor([GROUND_Z]), PC_RANGE)
    above = rays[..., 2] >= 0
    assert above.any()
    assert not valid[above].any() and (points[above] == 0).all() and (distance[above] == 0).all()


def test_starts_at_zero_and_receives_gradient():
    embedding = GeometryEmbedding(6, PC_RANGE)
    out = embedding(camera_matrices(IMAGE)[None], torch.tensor([GROUND_Z]), GRID, IMAGE)
    assert out.shape == (1, 6, 32, 6) and (out == 0).all()
    (out * torch.randn_like(out)).sum().backward()
    assert embedding.mlp[-1].weight.grad.abs().sum() > 0
