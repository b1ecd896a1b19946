"""Auxiliary tasks, training only: which vision tokens and which ground cells see which class of map line.

They keep vision tokens and ground features tied to the scene; without the first the scene tokens of all scenes drift
together. MapTRv2 (arXiv 2308.05736) does the same in the image and from above.
"""

# B batch, V cameras, C classes, h x w patches, Y x X ground cells, G ground-truth instances, P points

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.projection import project_to_cameras
from utils.frame import denormalize_pts

STEPS_PER_EDGE = 24  # points laid on each edge of a ground-truth line before it is drawn


def densify(pts: Tensor, steps: int) -> Tensor:
    """Polylines [G, P, 2] with `steps` points an edge, [G, (P-1)*steps + 1, 2]."""
    fraction = torch.arange(steps, device=pts.device, dtype=pts.dtype) / steps
    edges = pts[:, :-1, None] + fraction[None, None, :, None] * (pts[:, 1:] - pts[:, :-1])[:, :, None]
    return torch.cat([edges.flatten(1, 2), pts[:, -1:]], dim=1)


def rasterize_in_images(
    targets: list[dict[str, Tensor]],
    lidar2img: Tensor,
    ground_z: Tensor,
    grid: tuple[int, int],
    image_size: tuple[int, int],
    pc_range: tuple[float, ...],
    num_classes: int,
) -> Tensor:
    """Patches that a ground-truth line of each class crosses: float [B, V, C, h, w] of zeros and ones.

    targets: per sample `labels` [G] and `pts` [G, P, 2] in [0, 1], drawn on the ground plane z = ground_z [B].
    """
    rows, columns = grid
    masks = lidar2img.new_zeros(*lidar2img.shape[:2], num_classes, rows, columns)
    for sample, target in enumerate(targets):
        if len(target["labels"]) == 0:
            continue
        pts_m = denormalize_pts(densify(target["pts"], STEPS_PER_EDGE), pc_range)  # [G, N, 2]
        labels = target["labels"][:, None].expand(pts_m.shape[:2]).flatten()
        ground = torch.cat([pts_m, ground_z[sample].expand(*pts_m.shape[:2], 1)], dim=-1).flatten(0, 1)
        where, visible = project_to_cameras(ground[None], lidar2img[sample : sample + 1], image_size)
        camera, point = visible[0].nonzero(as_tuple=True)
        place = (where[0, camera, point] + 1) / 2
        column = (place[:, 0] * columns).long().clamp(max=columns - 1)
        row = (place[:, 1] * rows).long().clamp(max=rows - 1)
        masks[sample, camera, labels[point], row, column] = 1.0
    return masks


def rasterize_on_ground(targets: list[dict[str, Tensor]], shape: tuple[int, int], num_classes: int) -> Tensor:
    """Ground cells that a ground-truth line of each class crosses: float [B, C, Y, X] of zeros and ones.

    targets as in rasterize_in_images; row 0 of the cells is y = 0, column 0 is x = 0.
    """
    rows, columns = shape
    masks = torch.zeros(len(targets), num_classes, rows, columns, device=targets[0]["pts"].device)
    for sample, target in enumerate(targets):
        pts = densify(target["pts"], STEPS_PER_EDGE)  # [G, N, 2]
        labels = target["labels"][:, None].expand(pts.shape[:2])
        column = (pts[..., 0] * columns).long().clamp(0, columns - 1)
        row = (pts[..., 1] * rows).long().clamp(0, rows - 1)
        masks[sample, labels, row, column] = 1.0
    return masks


class SegmentationHead(nn.Module):
    """Per-patch class logits [B, V, C, h, w] from vision tokens [B, V, h*w, width]."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.classify = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens [B, V, h*w, width] on a grid (h, w) to logits [B, V, C, h, w]."""
        return self.classify(tokens).float().transpose(2, 3).unflatten(3, grid)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy plus dice (mean over the classes) of each sample, both on [B, ..., C, h, w]; returns [B].

    Of each sample by itself, so that a batch costs the same in one piece and in several.
    """
    logits, masks = (x.movedim(-3, 1).flatten(2) for x in (logits, masks))  # [B, C, N]
    bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2))
    probability = logits.sigmoid()
    overlap = (probability * masks).sum(2)
    dice = 1 - (2 * overlap + 1) / (probability.sum(2) + masks.sum(2) + 1)  # [B, C]
    return bce + dice.mean(1)
