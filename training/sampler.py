"""Which samples meet in which step: the same for every split of a global batch over ranks and accumulation."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from utils.distributed import Ranks
from utils.errors import UserError


class GlobalBatches(Sampler[list[int]]):
    """This rank's batches of an epoch: `accumulation` of them, one after the other, for each optimizer step.

    Step s of an epoch takes the samples s * G to (s + 1) * G of a permutation that (seed, epoch) alone decides, where
    the global batch G = batch_size * ranks * accumulation; its parts are dealt out to the ranks in turn. The samples
    that are left over at the end of an epoch, fewer than G, are not used in it: others are in the next.
    """

    def __init__(self, num_samples: int, batch_size: int, accumulation: int, seed: int, ranks: Ranks):
        """Raises UserError when there are fewer samples than one step takes."""
        self.batch_size, self.accumulation, self.seed, self.ranks = batch_size, accumulation, seed, ranks
        self.num_samples = num_samples
        self.global_batch = batch_size * ranks.world_size * accumulation
        self.steps_per_epoch = num_samples // self.global_batch
        if self.steps_per_epoch == 0:
            raise UserError(
                f"--batch-size {batch_size}: a step takes {self.global_batch} samples ({ranks.world_size} ranks, "
                f"{accumulation} accumulated), the training split has {num_samples}; take a smaller one"
            )
        self._epoch = self._first_step = 0

    def set_position(self, epoch: int, first_step: int = 0) -> None:
        """Choose the epoch of the next iteration, and the step of it to begin with; both count from 0."""
        self._epoch, self._first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self._first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._epoch)
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        for step in range(self._first_step, self.steps_per_epoch):
            for part in range(self.accumulation):
                start = step * self.global_batch + (part * self.ranks.world_size + self.ranks.rank) * self.batch_size
                yield order[start : start + self.batch_size]
