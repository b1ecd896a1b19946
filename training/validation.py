"""Scores of the validation split while training, each rank with its share of it."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from evaluation.chamfer_ap import match_samples, summarize, thresholds_for
from evaluation.inference import predict
from evaluation.vectors import ground_truth_of
from models.detector import MapDetector
from models.llm.sharding import join_forward_passes
from training.interruption import Interrupted, SignalWatch
from utils.distributed import Ranks

PROTOCOL = "maptr"  # tools/evaluate.py has both


def score_split(
    model: MapDetector, loader: DataLoader, device: torch.device, dtype: torch.dtype | None,
    pc_range: tuple[float, ...], sharded: bool, ranks: Ranks, watch: SignalWatch
) -> tuple[dict, dict[str, float]]:
    """On all ranks: the scores of the whole split as summarize makes them, and this rank's seconds and spreads.

    loader: this rank's batches; no sample is on two ranks. sharded: the LLM's weights lie on all ranks. Raises
    Interrupted, on all ranks, when one was asked to end.
    """
    watched = Watched(loader, watch)
    most = max(ranks.gather(len(loader)))  # before the passes, in which a sharded LLM exchanges its weights
    predictions, measured = predict(model, watched, device, dtype, pc_range)
    if sharded:
        join_forward_passes(model.llm, most - watched.passed)
    received = max(ranks.gather(watch.received))
    if received:
        raise Interrupted(received)
    ground_truth = ground_truth_of(loader.dataset.cache)
    own = {token: ground_truth[token] for token in predictions}
    thresholds = thresholds_for(pc_range)
    matches = ranks.merge(match_samples(predictions, own, PROTOCOL, thresholds, 1))
    return summarize(matches, PROTOCOL, thresholds), measured


class Watched:
    """A loader that ends early when the process was asked to end; `passed` batches have gone through."""

    def __init__(self, loader: DataLoader, watch: SignalWatch):
        self._loader, self._watch = loader, watch
        self.passed = 0

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict]:
        for batch in self._loader:
            if self._watch.received:
                return
            yield batch
            self.passed += 1
