"""Processes that share one job, started by torchrun; without it, this process is the only one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def merge(self, part: Mapping) -> dict:
        """The union of every rank's mapping, the same on all ranks; no key may be in two of them."""
        if self.world_size == 1:
            return dict(part)
        parts: list[dict] = [{} for _ in range(self.world_size)]
        dist.all_gather_object(parts, dict(part))
        merged = {key: value for each in parts for key, value in each.items()}
        assert len(merged) == sum(map(len, parts)), "a sample on two ranks"
        return merged


def join_ranks() -> Ranks:
    """Join the job that torchrun's environment describes.

    Over gloo also where there is CUDA: what the ranks exchange are Python objects, which nccl would send through a GPU
    that each rank has to own.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Ranks()
    dist.init_process_group("gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave_ranks(ranks: Ranks) -> None:
    """Leave the job, after which no rank can be reached."""
    if ranks.world_size > 1:
        dist.destroy_process_group()


def batches_of_rank(num_samples: int, batch_size: int, ranks: Ranks) -> list[list[int]]:
    """This rank's share of the samples in batches, each sample on one rank.

    The batches are those that one process would make, dealt out in turn, so that a sample always meets the same
    neighbours and its outputs are the same to the last bit whatever the number of ranks.
    """
    batches = [
        list(range(start, min(start + batch_size, num_samples))) for start in range(0, num_samples, batch_size)
    ]
    return batches[ranks.rank :: ranks.world_size]
