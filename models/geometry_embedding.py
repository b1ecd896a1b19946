"""What each image patch looks at, told to the network in the LiDAR frame."""

# B batch, V cameras, h x w patches

import math

import torch
from torch import Tensor, nn

from utils.frame import normalize_pts

NUM_FREQUENCIES = 4
# unit ray 3, camera centre 3, ground x y 2, validity 1, inverse distance 1, sine and cosine of x and y
NUM_FEATURES = 3 + 3 + 2 + 1 + 1 + 4 * NUM_FREQUENCIES


def patch_rays(lidar2img: Tensor, grid: tuple[int, int], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Viewing rays of the patch centres: unit directions [B, V, h, w, 3] and camera centres [B, V, 3], in metres.

    lidar2img [B, V, 4, 4] projects LiDAR-frame metres to pixels of the image_size (H, W) input, pixel centres
    at integers.
    """
    rows, columns = grid
    height, width = image_size
    matrix = lidar2img.float()
    inverse = torch.linalg.inv(matrix[..., :3, :3])  # [B, V, 3, 3]
    centre = -(inverse @ matrix[..., :3, 3:])[..., 0]  # [B, V, 3]
    v = (torch.arange(rows, device=matrix.device) + 0.5) * (height / rows) - 0.5
    u = (torch.arange(columns, device=matrix.device) + 0.5) * (width / columns) - 0.5
    v, u = torch.meshgrid(v, u, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)  # [h, w, 3]
    rays = torch.einsum("bvij,hwj->bvhwi", inverse, pixels)
    return nn.functional.normalize(rays, dim=-1), centre


def ground_intersection(
    rays: Tensor, centre: Tensor, ground_z: Tensor, pc_range: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays meet the plane z = ground_z: points in [0, 1] of pc_range, distance in metres, validity.

    Shapes [B, V, h, w, 2], [B, V, h, w], [B, V, h, w]. A ray at or above the horizon is invalid (its point and
    distance are zero); so is one that lands further than one range away, where a pixel means tens of metres.
    """
    drop = ground_z[:, None, None, None] - centre[..., None, None, 2]  # negative: the ground lies below
    slope = rays[..., 2]
    distance = drop / torch.where(slope < -1e-4, slope, torch.full_like(slope, -1e-4))  # [B, V, h, w]
    points_m = centre[:, :, None, None, :2] + distance[..., None] * rays[..., :2]
    points = normalize_pts(points_m, pc_range)
    valid = (slope < -1e-4) & (points > -1.0).all(-1) & (points < 2.0).all(-1)
    return points * valid[..., None], distance * valid, valid


class GeometryEmbedding(nn.Module):
    """Embedding of each patch's viewing ray and ground point, [B, V, h*w, C]; zero before training."""

    def __init__(self, dim: int, pc_range: tuple[float, ...], hidden_dim: int = 256):
        super().__init__()
        self.pc_range = pc_range
        self.mlp = nn.Sequential(nn.Linear(NUM_FEATURES, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(
        self, lidar2img: Tensor, ground_z: Tensor, grid: tuple[int, int], image_size: tuple[int, int]
    ) -> Tensor:
        """lidar2img [B, V, 4, 4] to pixels of image_size (H, W), ground_z [B] metres, grid (h, w) -> [B, V, h*w, C]."""
        with torch.no_grad(), torch.autocast(lidar2img.device.type, enabled=False):
            rays, centre = patch_rays(lidar2img, grid, image_size)
            points, distance, valid = ground_intersection(rays, centre, ground_z.float(), self.pc_range)
            frequency = math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES, device=rays.device)
            phase = (points[..., None] * frequency).flatten(-2)  # [B, V, h, w, 2*F]
            inverse_distance = valid / distance.clamp(min=1.0)
            features = torch.cat(
                [rays, centre[:, :, None, None].expand_as(rays), points, valid[..., None].float(),
                 inverse_distance[..., None], phase.sin() * valid[..., None], phase.cos() * valid[..., None]],
                dim=-1,
            )
        return self.mlp(features.flatten(2, 3))  # [B, V, h*w, C]
