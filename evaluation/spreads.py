"""The collapse alarms over a whole split, taken while a detector runs over it."""

# B batch, S scene tokens, D LLM width

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from models.alarms import SPREADS
from models.detector import MapDetector


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


@contextmanager
def reading_by(model: MapDetector, read: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within, the model reads its scene tokens by `read` instead of its own read_scene."""
    model.read_scene = read
    try:
        yield
    finally:
        del model.read_scene  # the method of the class shows again


@contextmanager
def watched_spreads(model: MapDetector) -> Iterator[dict[str, RunningSpread]]:
    """Within, what SPREADS are of is taken in from every batch that the model reads."""
    running = {name: RunningSpread() for name in SPREADS}
    read_scene = model.read_scene

    def watch(scene: Tensor, *others) -> tuple[Tensor, Tensor]:
        states = read_scene(scene, *others)
        for name, part in model.watched(scene, states[1]).items():
            running[name].add(part)
        return states

    with reading_by(model, watch):
        yield running


def spreads_of(running: dict[str, RunningSpread]) -> dict[str, float]:
    """The alarms by name; NaN for fewer than two samples."""
    return {name: each.spread() for name, each in running.items()}
