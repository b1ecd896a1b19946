"""Vector decoder: LLM states to polylines, refined layer by layer by looking at the image features on the ground.

Decoupled self-attention as in MapTRv2 (arXiv 2308.05736, sec. 3.3), sampling around reference points and iterative
refinement with detached references as in Deformable DETR (arXiv 2010.04159).
"""

# B batch, I instances, P points, K offsets, S scene tokens, Y x X ground cells, F ground features, D decoder width

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.frame import denormalize_pts, normalize_pts

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
NUM_FREQUENCIES = 6


def inverse_sigmoid(x: Tensor, eps: float = 1e-4) -> Tensor:
    """Logit of x in [0, 1]; eps keeps points on the range's border movable."""
    x = x.clamp(eps, 1 - eps)
    return torch.log(x / (1 - x))


class GroundSampling(nn.Module):
    """Each point reads the ground features at itself and at K - 1 learned offsets around it.

    The samples are concatenated, not averaged: which of them has seen paint tells the point where to move.
    """

    def __init__(self, dim: int, feature_dim: int, num_offsets: int, reach_m: float, pc_range: tuple[float, ...]):
        super().__init__()
        self.num_offsets = num_offsets
        self.pc_range = pc_range
        self.offsets = nn.Linear(dim, num_offsets * 2)
        self.output = nn.Sequential(nn.Linear(num_offsets * feature_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        nn.init.zeros_(self.offsets.weight)
        with torch.no_grad():
            self.offsets.bias.copy_(initial_offsets(num_offsets, reach_m).flatten())

    def forward(self, queries: Tensor, pts: Tensor, ground: Tensor) -> Tensor:
        """queries [B, N, D] at pts [B, N, 2] in [0, 1] of pc_range, ground [B, F, Y, X]; returns [B, N, D]."""
        with torch.autocast(queries.device.type, enabled=False):
            offsets = self.offsets(queries.float()).unflatten(-1, (self.num_offsets, 2))  # [B, N, K, 2] metres
            where = denormalize_pts(pts.float(), self.pc_range)[:, :, None] + offsets
            grid = normalize_pts(where, self.pc_range) * 2 - 1
            samples = F.grid_sample(ground.float(), grid, align_corners=False)  # [B, F, N, K]
        return self.output(samples.permute(0, 2, 3, 1).flatten(2).to(queries.dtype))


def initial_offsets(num_offsets: int, reach_m: float) -> Tensor:
    """A sunflower of points around the origin, [K, 2] in metres: the first at it, the last reach_m away."""
    index = torch.arange(num_offsets)
    angle = index * GOLDEN_ANGLE
    radius = reach_m * (index / max(num_offsets - 1, 1)) ** 0.75  # denser near the centre
    return torch.stack([angle.cos() * radius, angle.sin() * radius], dim=1)


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
    """Instances talk, points of one instance talk, then both look at the scene tokens and at the ground."""

    def __init__(self, dim: int, num_heads: int, mlp_size: int, dropout: float, look: GroundSampling):
        super().__init__()
        self.across_instances = Attention(dim, num_heads)
        self.along_points = Attention(dim, num_heads)
        self.to_scene = Attention(dim, num_heads)
        self.to_ground = look
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_size), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_size, dim))
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(5)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, pts: Tensor, scene: Tensor, ground: Tensor) -> Tensor:
        """x and position [B, I, P, D], pts [B, I, P, 2] in [0, 1], scene [B, S, D], ground [B, F, Y, X]."""
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
        x = x + self.dropout(self.to_ground(y, pts.flatten(1, 2), ground).view_as(x))
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

    def __init__(self, llm_dim: int, dim: int, num_layers: int, num_heads: int, mlp_size: int, dropout: float,
                 feature_dim: int, num_offsets: int, reach_m: float, num_instances: int, num_points: int,
                 num_classes: int, pc_range: tuple[float, ...]):
        super().__init__()
        self.instance_input = nn.Sequential(nn.LayerNorm(llm_dim), nn.Linear(llm_dim, dim))
        self.point_input = nn.Sequential(nn.LayerNorm(llm_dim), nn.Linear(llm_dim, dim))
        self.scene_input = nn.Sequential(nn.LayerNorm(llm_dim), nn.Linear(llm_dim, dim), nn.LayerNorm(dim))
        self.position = nn.Sequential(nn.Linear(4 * NUM_FREQUENCIES, dim), nn.GELU(), nn.Linear(dim, dim))
        self.references = nn.Parameter(inverse_sigmoid(initial_references(num_instances, num_points)))
        # The first layer looks far around, for lines that the references have missed; each next one half as far.
        looks = [
            GroundSampling(dim, feature_dim, num_offsets, max(reach_m / 2**layer, 1.0), pc_range)
            for layer in range(num_layers)
        ]
        self.layers = nn.ModuleList(
            [DecoderLayer(dim, num_heads, mlp_size, dropout, look) for look in looks]
        )
        self.heads = nn.ModuleList([VectorHead(dim, num_classes) for _ in range(num_layers + 1)])

    def embed_position(self, pts: Tensor) -> Tensor:
        """Sine embedding of pts [..., 2] in [0, 1], through an MLP, [..., D]."""
        frequency = math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES, device=pts.device)
        phase = (pts[..., None] * frequency).flatten(-2)
        return self.position(torch.cat([phase.sin(), phase.cos()], dim=-1))

    def forward(
        self, instance_states: Tensor, point_states: Tensor, scene_states: Tensor, ground: Tensor
    ) -> list[dict[str, Tensor]]:
        """instance_states [B, I, D_llm], point_states [B, I, P, D_llm], scene_states [B, S, D_llm] as the LLM left
        them; ground [B, F, Y, X].

        Returns one dict per head, first to last: pred_logits [B, I, classes], pred_pts [B, I, P, 2] in [0, 1].
        """
        x = self.point_input(point_states) + self.instance_input(instance_states)[:, :, None]  # [B, I, P, D]
        scene = self.scene_input(scene_states)
        logits, pts = self.heads[0](x, self.references.sigmoid().expand(len(x), -1, -1, -1))
        outputs = [{"pred_logits": logits, "pred_pts": pts}]
        for layer, head in zip(self.layers, self.heads[1:], strict=True):
            reference = pts.detach()
            x = layer(x, self.embed_position(reference), reference, scene, ground)
            logits, pts = head(x, reference)
            outputs.append({"pred_logits": logits, "pred_pts": pts})
        return outputs
