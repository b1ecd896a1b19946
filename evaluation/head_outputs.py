"""A detector looked into while it runs over a split: every head, what the scene tokens bring, which queries match."""

# B batch, S scene tokens, D LLM width, I instances

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from evaluation.inference import outputs_by_batch
from evaluation.postprocess import vectors_by_token
from evaluation.spreads import reading_by, spreads_of, watched_spreads
from evaluation.vectors import Vectors
from models.detector import MapDetector
from models.matcher import HungarianMatcher, pad_targets
from utils.run_log import progress_bar


@dataclass(frozen=True)
class Observations:
    """What one pass over a split has shown."""

    heads: list[dict[str, Vectors]]  # first to last: scored lines by sample token, every query once and in order
    match_counts: Tensor  # [I]: how often each query of the last head was the Hungarian match of a line
    scene_mean: Tensor  # [S, D]: the scene tokens as they go into the LLM, mean over the samples
    spread: dict[str, float]  # SPREADS, over all samples


def observe_heads(
    model: MapDetector, loader: DataLoader, device: torch.device, autocast_dtype: torch.dtype | None,
    pc_range: tuple[float, ...]
) -> Observations:
    """Run a detector in eval mode over a split of at least one sample, and keep what its heads and queries did."""
    matcher = HungarianMatcher()
    match_counts: Tensor | None = None
    heads: list[dict[str, Vectors]] = []
    with watched_spreads(model) as running, progress_bar(len(loader), "heads") as bar:
        for batch, outputs in outputs_by_batch(model, loader, device, autocast_dtype):
            every = [*outputs["aux_outputs"], outputs]
            heads = heads or [{} for _ in every]
            for found, head in zip(heads, every, strict=True):
                found.update(vectors_by_token(batch, head, pc_range))
            logits, pts = outputs["pred_logits"], outputs["pred_pts"]
            matches = matcher(logits[None], pts[None], pad_targets(batch["targets"], pts.shape[2], device))
            counts = matches.instance.bincount(minlength=logits.shape[1])
            match_counts = counts if match_counts is None else match_counts + counts
            bar.update()
    scene_mean = torch.cat([running["scene_std"].mean, running["ground_std"].mean])  # in the order of the tokens
    return Observations(heads, match_counts, scene_mean, spreads_of(running))


def heads_without_scene(
    model: MapDetector, loader: DataLoader, device: torch.device, autocast_dtype: torch.dtype | None,
    pc_range: tuple[float, ...], scene_mean: Tensor
) -> list[dict[str, Vectors]]:
    """Scored lines by token of the first and the last head when every scene has the same scene tokens [S, D].

    Only what the LLM is given changes: the decoder's own look at the images stays, and so do the words of a prompt.
    """
    read_scene = model.read_scene

    def read_mean(scene: Tensor, *others) -> tuple[Tensor, Tensor]:
        return read_scene(scene_mean.to(scene.dtype).expand_as(scene), *others)

    first, last = {}, {}
    with reading_by(model, read_mean), progress_bar(len(loader), "mean scene") as bar:
        for batch, outputs in outputs_by_batch(model, loader, device, autocast_dtype):
            first.update(vectors_by_token(batch, [*outputs["aux_outputs"], outputs][0], pc_range))
            last.update(vectors_by_token(batch, outputs, pc_range))
            bar.update()
    return [first, last]
