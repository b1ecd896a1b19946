"""Losses of MapTR/MapTRv2 on every head, normalised by the number of ground-truth instances."""

# L decoder heads, B batch, I instances, P points, C classes, M matched pairs

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.matcher import FOCAL_ALPHA, FOCAL_GAMMA, HungarianMatcher, Matches, PaddedTargets, pad_targets
from models.segmentation import rasterize_in_images, rasterize_on_ground, segmentation_loss
from utils.frame import denormalize_pts

WEIGHT_DICT = {"loss_cls": 2.0, "loss_pts": 5.0, "loss_dir": 0.005, "loss_noisy_cls": 2.0, "loss_noisy_pts": 5.0,
               "loss_noisy_dir": 0.005}
SEGMENTATION_WEIGHT = 8.0  # of each of the three segmentation losses
SHORTEST_EDGE_M = 0.05
SHORT_EDGE_M = 0.2


def sigmoid_focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss (arXiv 1708.02002) element by element, same shape as logits; wanted holds zeros and ones."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = probability * wanted + (1 - probability) * (1 - wanted)
    alpha = FOCAL_ALPHA * wanted + (1 - FOCAL_ALPHA) * (1 - wanted)
    return alpha * (1 - right) ** FOCAL_GAMMA * cross_entropy


def direction_loss(pts_m: Tensor, wanted_m: Tensor) -> Tensor:
    """One minus the cosine between corresponding edges of polylines [M, P, 2] in metres: [M, P-1].

    A wanted edge shorter than SHORTEST_EDGE_M has no direction and costs nothing. A predicted edge shorter than
    SHORT_EDGE_M and than the wanted one costs as if it were longer: two points in one place, as at the range's border,
    have a direction that rounding decides and a gradient without bound.
    """
    edges, wanted_edges = pts_m.diff(dim=1), wanted_m.diff(dim=1)
    length, wanted_length = edges.norm(dim=-1), wanted_edges.norm(dim=-1)
    length = torch.maximum(length, wanted_length.clamp(SHORTEST_EDGE_M, SHORT_EDGE_M))
    cosine = (edges * wanted_edges).sum(-1) / (length * wanted_length.clamp(min=SHORTEST_EDGE_M))
    return torch.where(wanted_length > SHORTEST_EDGE_M, 1 - cosine, torch.zeros_like(cosine))


class MapCriterion(nn.Module):
    """Unweighted losses by name; `total` applies WEIGHT_DICT and segmentation_weight.

    Heads are numbered from 0 (straight after the LLM) to L-1 (the last decoder layer): loss_cls_0 ... loss_dir_3.
    """

    def __init__(self, num_points: int, num_classes: int, pc_range: tuple[float, ...],
                 segmentation_weight: float = SEGMENTATION_WEIGHT):
        super().__init__()
        self.weights = WEIGHT_DICT | dict.fromkeys(("loss_seg", "loss_scene", "loss_ground"), segmentation_weight)
        self.matcher = HungarianMatcher()
        self.num_points = num_points
        self.num_classes = num_classes
        self.pc_range = pc_range

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the losses."""
        return sum(self.weights[name if name in self.weights else name.rsplit("_", 1)[0]] * loss
                   for name, loss in losses.items())

    def forward(
        self, outputs: dict, batch: dict, num_instances: float | None = None, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        """outputs of MapDetector and a collated batch on the same device; returns scalars by name.

        Losses of instances are divided by num_instances (at least 1), segmentations by num_samples; None: those of the
        batch. Where the batch is one part of a larger one, spread over processes or accumulated, they are those of the
        whole, and the losses of the parts add up to the whole's. A batch without any ground truth gives finite losses
        that still depend on every output. Raises FloatingPointError as the matcher does.
        """
        if num_instances is None:
            num_instances = sum(len(target["labels"]) for target in batch["targets"])
        num_samples = num_samples or len(batch["targets"])
        heads = [*outputs["aux_outputs"], outputs]
        logits = torch.stack([head["pred_logits"] for head in heads])  # [L, B, I, C]
        pts = torch.stack([head["pred_pts"] for head in heads])  # [L, B, I, P, 2]
        targets = pad_targets(batch["targets"], self.num_points, logits.device)
        matches = self.matcher(logits, pts, targets)
        losses = self.head_losses(logits, pts, targets, matches, max(num_instances, 1.0))
        if outputs.get("noisy_outputs"):
            losses |= self.noisy_losses(outputs["noisy_outputs"], targets, max(num_instances, 1.0))
        if outputs.get("seg_logits") is not None:
            seg_logits = outputs["seg_logits"]
            masks = rasterize_in_images(
                batch["targets"], batch["lidar2img"], batch["ground_z"], seg_logits.shape[-2:],
                batch["images"].shape[-2:], self.pc_range, self.num_classes,
            )
            losses["loss_seg"] = segmentation_loss(seg_logits, masks).sum() / num_samples
            if "scene_logits" in outputs:
                losses["loss_scene"] = segmentation_loss(outputs["scene_logits"], masks).sum() / num_samples
            ground_logits = outputs["ground_logits"]
            masks = rasterize_on_ground(batch["targets"], ground_logits.shape[-2:], self.num_classes)
            losses["loss_ground"] = segmentation_loss(ground_logits, masks).sum() / num_samples
        return losses

    def head_losses(
        self, logits: Tensor, pts: Tensor, targets: PaddedTargets, matches: Matches, num_instances: float
    ) -> dict[str, Tensor]:
        """Focal, point and direction loss of each head, all heads at once, divided by num_instances.

        logits [L, B, I, C], pts [L, B, I, P, 2] in [0, 1].
        """
        heads = logits.shape[0]
        wanted_class = torch.zeros_like(logits)
        at = (matches.head, matches.sample, matches.instance)
        wanted_class[(*at, targets.labels[matches.sample, matches.target])] = 1.0
        wanted_pts = targets.ordered_pts[matches.sample, matches.target, matches.order]  # [M, P, 2]
        matched_pts = pts[at]  # [M, P, 2]
        by_head = {
            "loss_cls": sigmoid_focal_loss(logits, wanted_class).flatten(1).sum(1),
            "loss_pts": _sum_by_head((matched_pts - wanted_pts).abs().sum((1, 2)), matches.head, heads),
            "loss_dir": _sum_by_head(self._direction_loss(matched_pts, wanted_pts).sum(1), matches.head, heads),
        }
        # The points take part even when nothing matched, so that every parameter gets a gradient.
        by_head["loss_pts"] = by_head["loss_pts"] + 0.0 * pts.flatten(1).sum(1)
        return {
            f"{name}_{head}": value / num_instances
            for name, values in by_head.items()
            for head, value in enumerate(values)
        }

    def noisy_losses(
        self, layers: list[dict[str, Tensor]], targets: PaddedTargets, num_instances: float
    ) -> dict[str, Tensor]:
        """The same losses, summed over the layers, of lines that know which ground truth they came from.

        layers: outputs for K noisy copies of each sample's lines, in the order of the targets, padded as they are.
        """
        logits = torch.stack([layer["pred_logits"] for layer in layers])  # [L, B, K*G, C]
        pts = torch.stack([layer["pred_pts"] for layer in layers])  # [L, B, K*G, P, 2]
        most = max(targets.labels.shape[1], 1)  # a batch without ground truth has a line of padding
        copies = logits.shape[2] // most
        counts = torch.tensor(targets.counts, device=logits.device)
        valid = torch.arange(most, device=logits.device) < counts[:, None]  # [B, G]
        valid = valid.repeat(1, copies).expand(len(layers), -1, -1)  # [L, B, K*G]
        layer, sample, query = valid.nonzero(as_tuple=True)  # [M]
        line = query % most
        own_logits, own_pts = logits[layer, sample, query], pts[layer, sample, query]  # [M, C], [M, P, 2]
        wanted_class = F.one_hot(targets.labels[sample, line], self.num_classes).to(own_logits.dtype)
        wanted_pts = targets.ordered_pts[sample, line, 0]  # [M, P, 2]
        sums = {
            "loss_noisy_cls": sigmoid_focal_loss(own_logits, wanted_class).sum(),
            "loss_noisy_pts": (own_pts - wanted_pts).abs().sum(),
            "loss_noisy_dir": self._direction_loss(own_pts, wanted_pts).sum(),
        }
        return {name: value / (num_instances * copies) for name, value in sums.items()}

    def _direction_loss(self, pts: Tensor, wanted: Tensor) -> Tensor:
        """[M, P-1] of points in [0, 1]; the range is longer than wide, so angles are those of metres."""
        return direction_loss(denormalize_pts(pts, self.pc_range), denormalize_pts(wanted, self.pc_range))


def _sum_by_head(values: Tensor, head: Tensor, num_heads: int) -> Tensor:
    return values.new_zeros(num_heads).index_add(0, head, values)
