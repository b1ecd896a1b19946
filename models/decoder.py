"""Vector decoder: LLM states to polylines, refined layer by layer by looking at the images.

Decoupled self-attention as in MapTRv2 (arXiv 2308.05736, sec. 3.3), image sampling at projected reference points
as in DETR3D (arXiv 2110.06922), iterative refinement with detached references as in Deformable DETR
(arXiv 2010.04159).
"""

# B batch, V cameras, I instances, P points, K offsets, H heads, S scene tokens, h x w patches, D decoder width

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.frame import denormalize_pts

MIN_DEPTH_M = 0.5  # what is closer to a camera, or behind it, is not seen by it
NUM_FREQUENCIES = 6
VIEWS_PER_POINT = 2  # the fields of view of nuScenes' cameras overlap in pairs


def inverse_sigmoid(x: Tensor, eps: float = 1e-4) -> Tensor:
    """Logit of x in [0, 1]; eps keeps points on the range's border movable."""
    x = x.clamp(eps, 1 - eps)
    return torch.log(x / (1 - x))


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
    size = pixels.new_tensor([width, height])
    grid = (2 * pixels + 1) / size - 1
    visible = (depth > MIN_DEPTH_M) & (grid.abs() < 1).all(-1)
    return grid, visible


def sample_cameras(features: Tensor, grid: Tensor, visible: Tensor) -> Tensor:
    """Features of points, averaged over the cameras that see them; zero where none does.

    features [B, V, C, h, w], grid [B, V, N, 2], visible [B, V, N] -> [B, C, N]. Of more than VIEWS_PER_POINT
    cameras that see a point, the first count. Half a patch from the image's edge the edge's own feature counts.
    """
    batch, cameras, channels, rows, columns = features.shape
    seen, camera = visible.to(torch.uint8).topk(min(VIEWS_PER_POINT, cameras), dim=1)  # [B, W, N]
    place = grid.gather(1, camera[..., None].expand(-1, -1, -1, 2)).clamp(-1, 1)  # [B, W, N, 2]
    # The cameras lie below one another in one tall image, so that only the views that see a point are sampled.
    tall = features.transpose(1, 2).reshape(batch, channels, cameras * rows, columns)
    row = ((place[..., 1] + 1) / 2 * rows - 0.5).clamp(0, rows - 1) + camera * rows
    place = torch.stack([place[..., 0], (2 * row + 1) / (cameras * rows) - 1], dim=-1)
    sampled = F.grid_sample(tall.float(), place, padding_mode="border", align_corners=False)  # [B, C, W, N]
    weight = seen / seen.sum(1, keepdim=True).clamp(min=1)  # [B, W, N]
    return (sampled * weight[:, None]).sum(2).to(features.dtype)  # [B, C, N]


class ImageSampling(nn.Module):
    """Each point looks at the images where it, and K learned offsets around it, project to."""

    def __init__(self, dim: int, num_heads: int, num_offsets: int, pc_range: tuple[float, ...]):
        super().__init__()
        self.num_heads = num_heads
        self.num_offsets = num_offsets
        self.pc_range = pc_range
        self.offsets = nn.Linear(dim, num_offsets * 3)
        self.weights = nn.Linear(dim, num_offsets * num_heads)
        self.output = nn.Linear(dim, dim)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        # Start with a ring of 0.5 m around the point; the first offset is the point itself.
        angle = torch.arange(num_offsets - 1) * (2 * math.pi / max(num_offsets - 1, 1))
        ring = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1) * 0.5
        with torch.no_grad():
            self.offsets.bias.copy_(torch.cat([torch.zeros(1, 3), ring]).flatten())

    def forward(
        self,
        queries: Tensor,
        pts: Tensor,
        features: Tensor,
        lidar2img: Tensor,
        ground_z: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """queries [B, N, D] at pts [B, N, 2] in [0, 1]; features [B, V, D, h, w]; returns [B, N, D]."""
        batch, num, dim = queries.shape
        with torch.autocast(queries.device.type, enabled=False):
            pts_m = denormalize_pts(pts.float(), self.pc_range)
            ground = torch.cat([pts_m, ground_z.float()[:, None, None].expand(-1, num, 1)], dim=-1)
            offsets = self.offsets(queries.float()).view(batch, num, self.num_offsets, 3)
            where = (ground[:, :, None] + offsets).flatten(1, 2)  # [B, N*K, 3]
            grid, visible = project_to_cameras(where, lidar2img.float(), image_size)
        values = sample_cameras(features, grid, visible)  # [B, D, N*K]
        values = values.view(batch, self.num_heads, dim // self.num_heads, num, self.num_offsets)
        weights = self.weights(queries).view(batch, num, self.num_heads, self.num_offsets).softmax(dim=-1)
        weights = weights.transpose(1, 2)[:, :, None]  # [B, H, 1, N, K]
        return self.output((values * weights).sum(-1).flatten(1, 2).transpose(1, 2))  # [B, N, D]


class Attention(nn.Module):
    """Multi-head attention whose positions are added to queries and keys, not to values."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim)])
        self.output = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [N, Tq, D], key and value [N, Tk, D] -> [N, Tq, D]."""
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [N, H, T, D/H]
            for x in (self.query(query), self.key_value[0](key), self.key_value[1](value))
        )
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Instances talk, points of one instance talk, then both look at the scene tokens and at the images."""

    def __init__(self, dim: int, num_heads: int, mlp_size: int, num_offsets: int, pc_range: tuple[float, ...],
                 dropout: float):
        super().__init__()
        self.across_instances = Attention(dim, num_heads)
        self.along_points = Attention(dim, num_heads)
        self.to_scene = Attention(dim, num_heads)
        self.to_images = ImageSampling(dim, num_heads, num_offsets, pc_range)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_size), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_size, dim))
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(5)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, pts: Tensor, scene: Tensor, features: Tensor,
                cameras: tuple) -> Tensor:
        """x and position [B, I, P, D], pts [B, I, P, 2] in [0, 1], scene [B, S, D], features [B, V, D, h, w].

        cameras: (lidar2img [B, V, 4, 4], ground_z [B], image_size (H, W)).
        """
        batch, instances, points, _ = x.shape
        y = self.norms[0](x).transpose(1, 2).flatten(0, 1)  # [B*P, I, D]
        at = y + position.transpose(1, 2).flatten(0, 1)
        y = self.across_instances(at, at, y).unflatten(0, (batch, points)).transpose(1, 2)
        x = x + self.dropout(y)
        y = self.norms[1](x).flatten(0, 1)  # [B*I, P, D]
        at = y + position.flatten(0, 1)
        x = x + self.dropout(self.along_points(at, at, y).unflatten(0, (batch, instances)))
        y = (self.norms[2](x) + position).flatten(1, 2)  # [B, I*P, D]
        x = x + self.dropout(self.to_scene(y, scene, scene).view_as(x))
        y = (self.norms[3](x) + position).flatten(1, 2)  # [B, I*P, D]
        x = x + self.dropout(self.to_images(y, pts.flatten(1, 2), features, *cameras).view_as(x))
        return x + self.dropout(self.mlp(self.norms[4](x)))


class VectorHead(nn.Module):
    """Class logits of instances and shifts of their points."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.classes = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, num_classes))
        self.points = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 2))
        # Focal loss starts stably when every class begins at probability 0.01 (RetinaNet, arXiv 1708.02002).
        nn.init.constant_(self.classes[-1].bias, -math.log((1 - 0.01) / 0.01))
        nn.init.zeros_(self.points[-1].weight)
        nn.init.zeros_(self.points[-1].bias)

    def forward(self, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, I, P, D] and reference [B, I, P, 2] in [0, 1] -> logits [B, I, C], pts [B, I, P, 2] in [0, 1]."""
        x = self.norm(x)
        logits = self.classes(x.mean(2)).float()
        pts = torch.sigmoid(self.points(x).float() + inverse_sigmoid(reference))
        return logits, pts


def initial_references(num_instances: int, num_points: int) -> Tensor:
    """Reference polylines [I, P, 2] in [0, 1] spread over the range, along and across the road in turn.

    Lines that all start alike get the same gradients and stay alike.
    """
    # A golden-ratio lattice covers the range evenly for any number of instances.
    index = torch.arange(num_instances)
    centre = torch.stack([(index * 0.6180339887) % 1.0, (index + 0.5) / num_instances], dim=1)  # [I, 2]
    angle = torch.where(index % 3 == 2, 0.0, math.pi / 2)  # every third lies across
    direction = torch.stack([angle.cos(), angle.sin()], dim=1) * 0.2
    along = torch.linspace(-1, 1, num_points)
    return (centre[:, None] + along[None, :, None] * direction[:, None]).clamp(0.02, 0.98)


class VectorDecoder(nn.Module):
    """Hidden states of the map queries to class logits and points, one prediction before and after each layer."""

    def __init__(self, llm_dim: int, vision_dim: int, dim: int, num_layers: int, num_heads: int, mlp_size: int,
                 num_offsets: int, dropout: float, num_instances: int, num_points: int, num_classes: int,
                 pc_range: tuple[float, ...]):
        super().__init__()
        self.instance_input = nn.Sequential(nn.LayerNorm(llm_dim), nn.Linear(llm_dim, dim))
        self.point_input = nn.Sequential(nn.LayerNorm(llm_dim), nn.Linear(llm_dim, dim))
        self.scene_input = nn.Sequential(nn.LayerNorm(llm_dim), nn.Linear(llm_dim, dim), nn.LayerNorm(dim))
        self.feature_input = nn.Sequential(nn.LayerNorm(vision_dim), nn.Linear(vision_dim, dim))
        self.position = nn.Sequential(nn.Linear(4 * NUM_FREQUENCIES, dim), nn.GELU(), nn.Linear(dim, dim))
        self.references = nn.Parameter(inverse_sigmoid(initial_references(num_instances, num_points)))
        self.layers = nn.ModuleList(
            [DecoderLayer(dim, num_heads, mlp_size, num_offsets, pc_range, dropout) for _ in range(num_layers)]
        )
        self.heads = nn.ModuleList([VectorHead(dim, num_classes) for _ in range(num_layers + 1)])

    def embed_position(self, pts: Tensor) -> Tensor:
        """Sine embedding of pts [..., 2] in [0, 1], through an MLP, [..., D]."""
        frequency = math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES, device=pts.device)
        phase = (pts[..., None] * frequency).flatten(-2)
        return self.position(torch.cat([phase.sin(), phase.cos()], dim=-1))

    def forward(self, instance_states: Tensor, point_states: Tensor, scene_states: Tensor, vision_tokens: Tensor,
                grid: tuple[int, int], cameras: tuple) -> list[dict[str, Tensor]]:
        """instance_states [B, I, D_llm], point_states [B, I, P, D_llm], scene_states [B, S, D_llm],
        vision_tokens [B, V, h*w, C]; cameras: (lidar2img [B, V, 4, 4], ground_z [B], image_size (H, W)).

        Returns one dict per head, first to last: pred_logits [B, I, classes], pred_pts [B, I, P, 2] in [0, 1].
        """
        x = self.point_input(point_states) + self.instance_input(instance_states)[:, :, None]  # [B, I, P, D]
        scene = self.scene_input(scene_states)
        features = self.feature_input(vision_tokens).transpose(2, 3).unflatten(3, grid)  # [B, V, D, h, w]
        logits, pts = self.heads[0](x, self.references.sigmoid().expand(len(x), -1, -1, -1))
        outputs = [{"pred_logits": logits, "pred_pts": pts}]
        for layer, head in zip(self.layers, self.heads[1:], strict=True):
            reference = pts.detach()
            x = layer(x, self.embed_position(reference), reference, scene, features, cameras)
            logits, pts = head(x, reference)
            outputs.append({"pred_logits": logits, "pred_pts": pts})
        return outputs
