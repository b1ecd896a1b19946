"""A detector looked into while it runs over a split: every head, what the scene tokens bring, which queries match."""

# B batch, S scene tokens, D LLM width, I instances

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from evaluation.inference import mean_spreads, outputs_by_batch, spreads_of
from evaluation.postprocess import outputs_to_vectors
from evaluation.vectors import Vectors
from models.alarms import SPREADS
from models.detector import MapDetector
from models.matcher import HungarianMatcher, pad_targets
from utils.run_log import progress_bar


class RunningSpread:
    """Mean of states and their spread across a split, without keeping them."""

    def __init__(self):
        self._count = 0
        self._sum: Tensor | None = None  # [...] float64
        self._squares: Tensor | None = None

    def add(self, states: Tensor) -> None:
        """Take in the states [B, ...] of a batch."""
        states = states.detach().double()
        if self._sum is None:
            self._sum, self._squares = torch.zeros_like(states[0]), torch.zeros_like(states[0])
        self._count += len(states)
        self._sum += states.sum(0)
        self._squares += states.square().sum(0)

    @property
    def mean(self) -> Tensor:
        """Mean across the samples, [...] float64."""
        return self._sum / self._count

    def spread(self) -> float:
        """What models.detector.spread_across_batch would say of all samples as one batch."""
        if self._count < 2 or not self._sum.numel():
            return float("nan")
        mean = self.mean
        across = (self._squares / self._count - mean.square()).clamp(min=0) * self._count / (self._count - 1)
        size = self._count * mean.numel()
        overall = (self._squares.sum() / size - (self._sum.sum() / size).square()) * size / (size - 1)
        return (across.sqrt().mean() / overall.clamp(min=0).sqrt().clamp(min=1e-12)).item()


@dataclass(frozen=True)
class Observations:
    """What one pass over a split has shown."""

    heads: list[dict[str, Vectors]]  # first to last: scored lines by sample token, every query once and in order
    match_counts: Tensor  # [I]: how often each query of the last head was the Hungarian match of a line
    scene_mean: Tensor  # [S, D]: the scene tokens as they go into the LLM, mean over the samples
    spread: dict[str, float]  # SPREADS, mean over the batches; *_split, over all samples at once


@contextmanager
def reading_by(model: MapDetector, read: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within, the model reads its scene tokens by `read` instead of its own read_scene."""
    model.read_scene = read
    try:
        yield
    finally:
        del model.read_scene  # the method of the class shows again


def observe_heads(
    model: MapDetector, loader: DataLoader, device: torch.device, autocast_dtype: torch.dtype | None,
    pc_range: tuple[float, ...]
) -> Observations:
    """Run a detector in eval mode over a split of at least one sample, and keep what its heads and queries did."""
    matcher = HungarianMatcher()
    read_scene = model.read_scene
    whole, watched, batch_spreads = RunningSpread(), {name: RunningSpread() for name in SPREADS}, []
    match_counts: Tensor | None = None

    def watch(scene: Tensor, *others) -> tuple[Tensor, Tensor]:
        states = read_scene(scene, *others)
        whole.add(scene)
        for name, part in model.watched(scene, states[1]).items():
            watched[name].add(part)
        return states

    heads: list[dict[str, Vectors]] = []
    with reading_by(model, watch), progress_bar(len(loader), "heads") as bar:
        for batch, outputs in outputs_by_batch(model, loader, device, autocast_dtype):
            every = [*outputs["aux_outputs"], outputs]
            heads = heads or [{} for _ in every]
            for found, head in zip(heads, every, strict=True):
                found.update(vectors_by_token(batch, head, pc_range))
            logits, pts = outputs["pred_logits"], outputs["pred_pts"]
            matches = matcher(logits[None], pts[None], pad_targets(batch["targets"], pts.shape[2], device))
            counts = matches.instance.bincount(minlength=logits.shape[1])
            match_counts = counts if match_counts is None else match_counts + counts
            batch_spreads.append(spreads_of(outputs))
            bar.update()
    over_split = {f"{name}_split": running.spread() for name, running in watched.items()}
    return Observations(heads, match_counts, whole.mean, mean_spreads(batch_spreads) | over_split)


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


def vectors_by_token(batch: dict, head: dict[str, Tensor], pc_range: tuple[float, ...]) -> dict[str, Vectors]:
    """What one head says of each sample of a batch."""
    vectors = outputs_to_vectors(head["pred_logits"], head["pred_pts"], pc_range)
    return dict(zip(batch["sample_tokens"], vectors, strict=True))
