"""LiDAR-frame points to image features: projection into the cameras and sampling there."""

# B batch, V cameras, N points, F feature channels, h x w feature map

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.frame import constant_like

MIN_DEPTH_M = 0.5  # what is closer to a camera, or behind it, is not seen by it


def project_to_cameras(pts_3d: Tensor, lidar2img: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """LiDAR-frame points [B, N, 3] in metres to grid_sample coordinates [B, V, N, 2] and visibility [B, V, N].

    Coordinates are those of grid_sample with align_corners=False: -1 and 1 are the outer edges of the image.
    Pixel centres of image_size (H, W) are at integers, as in lidar2img [B, V, 4, 4].
    """
    height, width = image_size
    rotation, shift = lidar2img[..., :3, :3], lidar2img[..., :3, 3]
    camera = torch.einsum("bvij,bnj->bvni", rotation, pts_3d) + shift[:, :, None]  # [B, V, N, 3]
    depth = camera[..., 2]
    pixels = camera[..., :2] / depth.clamp(min=MIN_DEPTH_M)[..., None]
    size = constant_like(pixels, [width, height])
    grid = (2 * pixels + 1) / size - 1
    visible = (depth > MIN_DEPTH_M) & (grid.abs() < 1).all(-1)
    return grid, visible


def sample_cameras(features: Tensor, grid: Tensor, visible: Tensor) -> Tensor:
    """Features of points in the camera that sees them nearest to its centre; zero where none does.

    features [B, V, F, h, w], grid [B, V, N, 2], visible [B, V, N] -> [B, F, N]. The fields of view of nuScenes'
    cameras overlap by a few degrees only, and one look costs a sixth of six. Within half a cell of the image's
    edge the edge's own feature counts.
    """
    batch, cameras, channels, rows, columns = features.shape
    off_centre = grid.detach().abs().amax(-1).masked_fill(~visible, torch.inf)  # [B, V, N]
    camera = off_centre.argmin(1, keepdim=True)  # [B, 1, N]
    place = grid.gather(1, camera[..., None].expand(-1, -1, -1, 2)).clamp(-1, 1)  # [B, 1, N, 2]
    # The cameras lie below one another in one tall image, so that one call samples all of them.
    tall = features.transpose(1, 2).reshape(batch, channels, cameras * rows, columns)
    row = ((place[..., 1] + 1) / 2 * rows - 0.5).clamp(0, rows - 1) + camera * rows
    place = torch.stack([place[..., 0], (2 * row + 1) / (cameras * rows) - 1], dim=-1)
    # In half precision the row of a tall image would be off by more than a pixel.
    sampled = F.grid_sample(tall.float(), place.float(), padding_mode="border", align_corners=False)[:, :, 0]
    return (sampled * visible.any(1)[:, None]).to(features.dtype)  # [B, F, N]
