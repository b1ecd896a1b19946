"""From model outputs to scored polylines in metres."""

# B batch, I instances, C classes, P points of an instance

from collections.abc import Sequence

import numpy as np
import torch

from evaluation.curves import curves_through
from evaluation.vectors import Vectors
from utils.frame import denormalize_pts


def outputs_to_vectors(
    pred_logits: torch.Tensor, pred_pts: torch.Tensor, pc_range: Sequence[float], sample_tokens: Sequence[str]
) -> list[Vectors]:
    """Per sample, every instance once, with its best class and that class's sigmoid as score.

    pred_logits [B, I, C], pred_pts [B, I, P, 2] in [0, 1] of pc_range; points come back in metres, LiDAR frame, with
    more of them in bends (curves_through), none outside pc_range. No score threshold and no cap: average precision
    needs the whole ranking. Raises FloatingPointError, which names the sample by its token, if an output is not finite.
    """
    scores, labels = pred_logits.detach().float().sigmoid().max(dim=-1)  # [B, I]
    pts_m = denormalize_pts(pred_pts.detach().float(), pc_range)
    scores, labels, pts_m = (tensor.cpu().numpy() for tensor in (scores, labels, pts_m))
    for token, sample_scores, sample_pts in zip(sample_tokens, scores, pts_m, strict=True):
        if not (np.isfinite(sample_scores).all() and np.isfinite(sample_pts).all()):
            raise FloatingPointError(f"sample {token}: the model's outputs are not finite; where it computes in fp16, "
                                     "train it with --precision bf16")
    low, high = np.float32(pc_range[:2]), np.float32(pc_range[3:5])
    return [
        Vectors(sample_labels, [line.clip(low, high) for line in curves_through(sample_pts)], sample_scores)
        for sample_labels, sample_pts, sample_scores in zip(labels, pts_m, scores, strict=True)
    ]


def vectors_by_token(
    batch: dict, outputs: dict[str, torch.Tensor], pc_range: Sequence[float]
) -> dict[str, Vectors]:
    """What the outputs of a head say of each sample of a collated batch, by its token; see outputs_to_vectors."""
    tokens = batch["sample_tokens"]
    vectors = outputs_to_vectors(outputs["pred_logits"], outputs["pred_pts"], pc_range, tokens)
    return dict(zip(tokens, vectors, strict=True))
