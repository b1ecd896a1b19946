"""Auxiliary tasks, training only: which patches and which ground cells see which class of map line.

They keep vision tokens, scene tokens and ground features tied to the scene: what nobody asks for drifts together over
all scenes. MapTRv2 (arXiv 2308.05736) does the same with image features and from above.
"""

# B batch, V cameras, N scene tokens a camera, C classes, h x w patches, Y x X ground cells, F ground features,
# G ground-truth instances, P points

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import Attention
from models.projection import project_to_cameras
from utils.frame import denormalize_pts

STEPS_PER_EDGE = 24  # points laid on each edge of a ground-truth line before it is drawn
# What every class begins at: about the share of ground cells that its lines cross. From 0.5, Adam's small steps would
# first have to walk the biases there.
FIRST_PROBABILITY = 0.03


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


class SceneReader(nn.Module):
    """What each patch of a camera holds, read from the camera's scene tokens alone by a query of its own.

    Where ground tokens serve the map queries better, scene tokens that nothing else is asked of become the same for
    every scene.
    """

    def __init__(self, llm_dim: int, dim: int, num_heads: int, num_patches: int, num_classes: int):
        super().__init__()
        self.patches = nn.Parameter(torch.randn(num_patches, dim))
        self.tokens = nn.Sequential(nn.LayerNorm(llm_dim), nn.Linear(llm_dim, dim))
        self.attention = Attention(dim, num_heads)
        self.classify = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, num_classes))

    def forward(self, scene: Tensor) -> Tensor:
        """Scene tokens [B, V, N, D] as they go into the LLM to logits [B, V, h*w, C]."""
        tokens = self.tokens(scene.flatten(0, 1))  # [B*V, N, dim]
        patches = self.patches.to(tokens.dtype).expand(len(tokens), -1, -1)
        return self.classify(self.attention(patches, tokens, tokens)).unflatten(0, scene.shape[:2])


class SegmentationHeads(nn.Module):
    """Class logits of patches from vision tokens and from scene tokens, and of ground cells from ground features.

    num_scene_tokens: N; 0 where there are none to ask.
    """

    def __init__(self, vision_dim: int, llm_dim: int, feature_dim: int, dim: int, num_heads: int,
                 grid: tuple[int, int], num_scene_tokens: int, num_classes: int):
        super().__init__()
        self.grid, self.num_scene_tokens = tuple(grid), num_scene_tokens
        self.vision = nn.Sequential(nn.LayerNorm(vision_dim), nn.Linear(vision_dim, num_classes))
        self.scene = SceneReader(llm_dim, dim, num_heads, grid[0] * grid[1], num_classes) if num_scene_tokens else None
        self.ground = nn.Conv2d(feature_dim, num_classes, 1)
        for last in (self.vision[-1], self.ground, *([self.scene.classify[-1]] if self.scene else [])):
            nn.init.constant_(last.bias, math.log(FIRST_PROBABILITY / (1 - FIRST_PROBABILITY)))

    def forward(self, patches: Tensor, scene: Tensor, ground: Tensor) -> dict[str, Tensor]:
        """Vision tokens [B, V, h*w, width], scene tokens [B, V*N, D], ground features [B, F, Y, X] to float32
        seg_logits and scene_logits [B, V, C, h, w] and ground_logits [B, C, Y, X]."""
        logits = {"seg_logits": self.vision(patches)}
        if self.scene is not None:
            logits["scene_logits"] = self.scene(scene.unflatten(1, (patches.shape[1], self.num_scene_tokens)))
        logits = {name: of.float().transpose(2, 3).unflatten(3, self.grid) for name, of in logits.items()}
        return logits | {"ground_logits": self.ground(ground).float()}


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
