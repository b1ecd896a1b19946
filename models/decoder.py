"""Vector decoder: LLM states to polylines, refined layer by layer by looking at the image features on the ground.

Decoupled self-attention as in MapTRv2 (arXiv 2308.05736, sec. 3.3), sampling around reference points and iterative
refinement with detached references as in Deformable DETR (arXiv 2010.04159).
"""

# B batch, I instances, P points, K offsets, S scene tokens, Y x X ground cells, F ground features, D decoder width

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import Attention
from models.sunflower import sunflower
from utils.frame import denormalize_pts, normalize_pts

NUM_FREQUENCIES = 6
# What an output of 1 means, so that outputs of a common size reach the next lane and learn at one rate.
MOVE_UNIT_M = 2.0
STRETCH_UNIT = 0.2


class GroundSampling(nn.Module):
    """Each point reads the ground features at K learned offsets from itself, of which the first begins at zero.

    The samples are concatenated, not averaged: which of them has seen paint tells the point where to move.
    """

    def __init__(self, dim: int, feature_dim: int, num_offsets: int, reach_m: float, pc_range: tuple[float, ...]):
        super().__init__()
        self.num_offsets = num_offsets
        self.pc_range = pc_range
        self.offsets = nn.Linear(dim, num_offsets * 2)
        seen = num_offsets * feature_dim
        self.output = nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, dim), nn.GELU(), nn.Linear(dim, dim))
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
    share = torch.arange(num_offsets) / max(num_offsets - 1, 1)
    return sunflower(reach_m * share**0.75)  # denser near the centre


class DecoderLayer(nn.Module):
    """Points look at the ground, points of one instance talk, instances talk, all look at the scene tokens.

    The ground comes first: what one point sees, such as the end of the paint, concerns all points of its line.
    look: None leaves that out.
    """

    def __init__(self, dim: int, num_heads: int, mlp_size: int, dropout: float, look: GroundSampling | None):
        super().__init__()
        self.to_ground = look
        self.along_points = Attention(dim, num_heads)
        self.across_instances = Attention(dim, num_heads)
        self.to_scene = Attention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_size), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_size, dim))
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(5)])
        if look is None:
            self.norms[0] = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, position: Tensor, pts: Tensor, scene: Tensor, ground: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """x and position [B, I, P, D], pts [B, I, P, 2] in [0, 1], scene [B, S, D], ground [B, F, Y, X].

        mask [B, I, I]: True = the row's instance may look at the column's. Returns the new x.
        """
        batch, instances, points, _ = x.shape
        if self.to_ground is not None:
            y = (self.norms[0](x) + position).flatten(1, 2)  # [B, I*P, D]
            x = x + self.dropout(self.to_ground(y, pts.flatten(1, 2), ground).view_as(x))
        y = self.norms[1](x).flatten(0, 1)  # [B*I, P, D]
        at = y + position.flatten(0, 1)
        x = x + self.dropout(self.along_points(at, at, y).unflatten(0, (batch, instances)))
        y = self.norms[2](x).transpose(1, 2).flatten(0, 1)  # [B*P, I, D]
        at = y + position.transpose(1, 2).flatten(0, 1)
        mask = None if mask is None else mask.repeat_interleave(points, 0)[:, None]  # [B*P, 1, I, I]
        y = self.across_instances(at, at, y, mask).unflatten(0, (batch, points)).transpose(1, 2)
        x = x + self.dropout(y)
        y = (self.norms[3](x) + position).flatten(1, 2)  # [B, I*P, D]
        x = x + self.dropout(self.to_scene(y, scene, scene).view_as(x))
        return x + self.dropout(self.mlp(self.norms[4](x)))


class VectorHead(nn.Module):
    """Class logits of instances, and where their reference lines move: each as a whole, and point by point.

    Moves are metres, so that paint two metres to the left asks for the same anywhere; through a sigmoid, as Deformable
    DETR has it, a point near the range's border hardly moves. A line that ends too late shrinks by one number, where
    points alone would each have to learn a move of their own.
    """

    def __init__(self, dim: int, num_classes: int, pc_range: tuple[float, ...]):
        super().__init__()
        self.pc_range = pc_range
        self.norm = nn.LayerNorm(dim)
        self.classes = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, num_classes))
        self.points = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 2))
        # Focal loss starts stably when every class begins at probability 0.01 (RetinaNet, arXiv 1708.02002).
        nn.init.constant_(self.classes[-1].bias, -math.log((1 - 0.01) / 0.01))
        self.line = nn.Linear(dim, 6)  # what turns and stretches it about its centre [2, 2], what shifts it [2]
        for last in (self.points[-1], self.line):
            nn.init.normal_(last.weight, std=0.03)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, I, P, D] and reference [B, I, P, 2] in [0, 1] -> logits [B, I, C], pts [B, I, P, 2] in [0, 1]."""
        x = self.norm(x)
        instance = x.mean(2)  # [B, I, D]
        logits = self.classes(instance).float()
        matrix, shift = self.line(instance).float()[:, :, None].split([4, 2], dim=-1)  # [B, I, 1, 4 and 2]
        pts_m = denormalize_pts(reference, self.pc_range)
        from_centre = pts_m - pts_m.mean(2, keepdim=True)  # [B, I, P, 2]
        stretch = (matrix.unflatten(-1, (2, 2)) * from_centre[..., None, :]).sum(-1)  # [B, I, P, 2]
        pts_m = pts_m + STRETCH_UNIT * stretch + MOVE_UNIT_M * (shift + self.points(x).float())
        return logits, cut_to_range(normalize_pts(pts_m, self.pc_range))


def cut_to_range(pts: Tensor) -> Tensor:
    """pts cut to [0, 1], but with the gradient of what was cut: a point outside can come back."""
    return pts.detach().clamp(0, 1) + (pts - pts.detach())


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
        self.references = nn.Parameter(initial_references(num_instances, num_points))
        # The first layer looks far around, for lines that the references have missed; each next one half as far.
        looks = [
            GroundSampling(dim, feature_dim, num_offsets, max(reach_m / 2**layer, 1.0), pc_range)
            if num_offsets else None
            for layer in range(num_layers)
        ]
        self.layers = nn.ModuleList(
            [DecoderLayer(dim, num_heads, mlp_size, dropout, look) for look in looks]
        )
        for module in self.layers.modules():
            # As in DETR. torch's own start passes so little through two layers that what a point sees is lost in x.
            if isinstance(module, nn.Linear) and module not in [look.offsets for look in looks if look]:
                nn.init.xavier_uniform_(module.weight)
        self.heads = nn.ModuleList([VectorHead(dim, num_classes, pc_range) for _ in range(num_layers + 1)])

    def embed_position(self, pts: Tensor) -> Tensor:
        """Sine embedding of pts [..., 2] in [0, 1], through an MLP, [..., D]."""
        frequency = math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES, device=pts.device)
        phase = (pts[..., None] * frequency).flatten(-2)
        return self.position(torch.cat([phase.sin(), phase.cos()], dim=-1))

    def forward(
        self, instance_states: Tensor, point_states: Tensor, scene_states: Tensor, ground: Tensor,
        noisy_pts: Tensor | None = None, noisy_mask: Tensor | None = None,
    ) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
        """instance_states [B, I, D_llm], point_states [B, I, P, D_llm], scene_states [B, S, D_llm] as the LLM left
        them; ground [B, F, Y, X].

        Returns one dict per head, first to last: pred_logits [B, I, classes], pred_pts [B, I, P, 2] in [0, 1]; and one
        per layer of the same for the lines noisy_pts [B, N, P, 2] in [0, 1], which a training may add; noisy_mask
        [B, N, N]: True = the row's line may look at the column's.
        """
        x = self.point_input(point_states) + self.instance_input(instance_states)[:, :, None]  # [B, I, P, D]
        scene = self.scene_input(scene_states)
        logits, pts = self.heads[0](x, cut_to_range(self.references).expand(len(x), -1, -1, -1))
        outputs = [{"pred_logits": logits, "pred_pts": pts}, *self.refine(x, pts, scene, ground)]
        if noisy_pts is None:
            return outputs, []
        # A query without identity: a noisy line has only its place to tell it from others. By themselves, so that the
        # map queries learn nothing of where the lines are. What it is made of is not trained by it.
        anybody = x.detach().mean(1, keepdim=True).expand(-1, noisy_pts.shape[1], -1, -1)
        return outputs, self.refine(anybody, noisy_pts, scene, ground, noisy_mask)

    def refine(
        self, x: Tensor, pts: Tensor, scene: Tensor, ground: Tensor, mask: Tensor | None = None
    ) -> list[dict[str, Tensor]]:
        """Queries x [B, N, P, D] at pts [B, N, P, 2], scene tokens [B, S, D]: a prediction after each layer."""
        outputs = []
        for layer, head in zip(self.layers, self.heads[1:], strict=True):
            reference = pts.detach()
            x = layer(x, self.embed_position(reference), reference, scene, ground, mask)
            logits, pts = head(x, reference)
            outputs.append({"pred_logits": logits, "pred_pts": pts})
        return outputs
