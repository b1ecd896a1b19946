"""Processes that share one job, started by torchrun; without it, this process is the only one.

Where it says "on all ranks", all of them have to come there: what they exchange there is a collective, and a rank that
stays away ends the others with an error after the timeout of join_ranks.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError

T = TypeVar("T")


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
        """On all ranks: the union of every rank's mapping; no key may be in two of them."""
        parts = self.gather(dict(part))
        merged = {key: value for each in parts for key, value in each.items()}
        assert len(merged) == sum(map(len, parts)), "a sample on two ranks"
        return merged

    def gather(self, value: T) -> list[T]:
        """On all ranks: every rank's value, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """On all ranks: the sum of every rank's tensor, to the last bit the same on all."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def from_main(self, find: Callable[[], T]) -> T:
        """On all ranks: what `find` returns on the main rank, which alone runs it.

        A UserError that it raises there is raised there, and ends the others without a word, with exit code 2.
        """
        answer: list[tuple[T | None, UserError | None]] = [(None, None)]
        if self.is_main:
            try:
                answer = [(find(), None)]
            except UserError as error:
                answer = [(None, error)]
        if self.world_size > 1:
            dist.broadcast_object_list(answer)
        found, error = answer[0]
        if error is not None:
            raise error if self.is_main else SystemExit(2)
        return found


def join_ranks(timeout_s: float = 600.0, on_gpus: bool = False) -> Ranks:
    """Join the job that torchrun's environment describes; a rank that waits longer for another raises an error.

    Python objects and tensors on the CPU travel over gloo; tensors on a GPU, if any do (on_gpus), over nccl, for which
    each rank has to own a GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        size = os.environ["WORLD_SIZE"]
        raise UserError(f"WORLD_SIZE {size}: {missing[0]} is not set beside it; start with torchrun, or unset both")
    timeout = timedelta(seconds=timeout_s)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun's restarts share one store, in which the addresses of the dead would still stand (pytorch issue 135712).
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", store=store, rank=rank,
                            world_size=world_size, timeout=timeout)
    return Ranks(rank, world_size)


def with_averaged_gradients(model: nn.Module) -> DistributedDataParallel:
    """The model, whose backward pass averages the gradients of what trains over the ranks.

    Nothing else is exchanged: every rank has drawn or read the same weights, and most of them are frozen.
    """
    # Newer versions of torch have renamed the argument.
    known = inspect.signature(DistributedDataParallel).parameters
    quiet = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(model, init_sync=False, gradient_as_bucket_view=True, **{quiet: False})


def leave_ranks(ranks: Ranks) -> None:
    """Leave the job, after which no rank can be reached."""
    if ranks.world_size > 1:
        dist.destroy_process_group()


def in_batches(indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """Positions of samples in their order, batch_size at a time."""
    return [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]


def batches_of_rank(num_samples: int, batch_size: int, ranks: Ranks) -> list[list[int]]:
    """This rank's share of the samples in batches, each sample on one rank.

    The batches are those that one process would make, dealt out in turn, so that a sample always meets the same
    neighbours and its outputs are the same to the last bit whatever the number of ranks.
    """
    return in_batches(range(num_samples), batch_size)[ranks.rank :: ranks.world_size]
