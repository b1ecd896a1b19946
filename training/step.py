"""One optimizer step over the batches of all ranks."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evaluation.inference import move_batch
from models.alarms import SPREADS
from models.criterion import MapCriterion
from training.interruption import SIGNALS, Interrupted, SignalWatch
from utils.distributed import Ranks
from utils.optim import gradient_norms

# The scaler halves its scale at each overflow; so small, and it is not the scale that overflows.
_SMALLEST_SCALE = 2.0**-10


@dataclass
class StepResult:
    """What a step found: this rank's share of the losses, which `TrainStep.over_ranks` sums, and norms of all."""

    losses: dict[str, Tensor]  # weighted `loss` and its unweighted parts, this rank's share of the sums
    spreads: dict[str, Tensor]  # SPREADS of this rank's last batch
    gradient_norms: dict[str, Tensor]  # before clipping, by parameter group
    gradient_norm: float
    overflowed: bool  # the scaled gradients were not finite: the scaler has left the weights as they were


class TrainStep:
    """Forward, losses, backward, clipping and optimizer, the same on every rank.

    network: the detector, wrapped in DistributedDataParallel where there are several ranks.
    """

    def __init__(self, network: nn.Module, criterion: MapCriterion, optimizer: torch.optim.Optimizer,
                 scaler: torch.amp.GradScaler, device: torch.device, dtype: torch.dtype | None, grad_clip: float,
                 ranks: Ranks, watch: SignalWatch):
        self.network, self.criterion, self.optimizer, self.scaler = network, criterion, optimizer, scaler
        self.device, self.dtype, self.grad_clip, self.ranks, self.watch = device, dtype, grad_clip, ranks, watch
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batches: Sequence[dict], step: int) -> StepResult:
        """batches: this rank's, in the order of accumulation; step: its number, for messages.

        Losses are those of the global batch whatever its split. Raises Interrupted, before anything has changed, when a
        rank was asked to end, and FloatingPointError, before the weights have changed, when a loss or a gradient is not
        finite; both on all ranks.
        """
        instances, samples = self._count(batches)
        self.optimizer.zero_grad(set_to_none=True)
        summed: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, 1):
            batch = move_batch(batch, self.device)
            with self._without_reduction(number < len(batches)):
                with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                    outputs = self.network(batch)
                losses = self._finite_losses(outputs, batch, instances, samples, step)
                # DistributedDataParallel averages the ranks' gradients; the losses are shares of a sum.
                self.scaler.scale(losses["loss"] * self.ranks.world_size).backward()
            summed = {name: summed.get(name, 0.0) + value.detach() for name, value in losses.items()}
        spreads = {name: outputs[name] for name in SPREADS}
        return StepResult(summed, spreads, *self._update(batches, step))

    def over_ranks(self, result: StepResult) -> dict[str, float]:
        """On all ranks: the losses of the global batch, spreads and gradient norms as numbers, for the log."""
        losses = self.ranks.sum(torch.stack(list(result.losses.values())).cpu()).tolist()
        others = result.spreads | {f"grad_norm_{name}": norm for name, norm in result.gradient_norms.items()}
        return dict(zip(result.losses, losses, strict=True)) | {name: value.item() for name, value in others.items()}

    def _count(self, batches: Sequence[dict]) -> tuple[float, int]:
        """Ground-truth instances and samples of the global batch."""
        instances = sum(len(target["labels"]) for batch in batches for target in batch["targets"])
        samples = sum(len(batch["sample_tokens"]) for batch in batches)
        asked = [self.watch.received == number for number in SIGNALS]
        instances, samples, *asked = self.ranks.sum(
            torch.tensor([instances, samples, *asked], dtype=torch.float64)
        ).tolist()
        for number, ranks_asked in zip(SIGNALS, asked, strict=True):
            if ranks_asked:
                raise Interrupted(number)
        return instances, int(samples)

    def _without_reduction(self, wanted: bool) -> contextlib.AbstractContextManager:
        """No sum of gradients over the ranks until the last batch of a step."""
        return self.network.no_sync() if wanted and self.ranks.world_size > 1 else contextlib.nullcontext()

    def _finite_losses(
        self, outputs: dict, batch: dict, instances: float, samples: int, step: int
    ) -> dict[str, Tensor]:
        """The weighted `loss` and its parts. A rank must not go on alone, so all of them hear of any that cannot."""
        losses, problem = {}, ""
        try:
            parts = self.criterion(outputs, batch, instances, samples)
            losses = {"loss": self.criterion.total(parts), **parts}
            values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
            if not math.isfinite(values["loss"]):
                problem = f"the loss is {values['loss']}, its parts {values}"
        except FloatingPointError as error:
            problem = str(error)
        if self.ranks.sum(torch.tensor(float(bool(problem)))):
            if problem:
                problem = f"rank {self.ranks.rank}: {problem}, samples {batch['sample_tokens']}"
            raise FloatingPointError(f"step {step}: " + "; ".join(filter(None, self.ranks.gather(problem))))
        return losses

    def _update(self, batches: Sequence[dict], step: int) -> tuple[dict[str, Tensor], float, bool]:
        self.scaler.unscale_(self.optimizer)
        norms = gradient_norms(self.optimizer)
        total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        finite = bool(total.isfinite())
        if not finite and (not self.scaler.is_enabled() or self.scaler.get_scale() < _SMALLEST_SCALE):
            found = {name: norm.item() for name, norm in norms.items()}
            tokens = self.ranks.gather([token for batch in batches for token in batch["sample_tokens"]])
            raise FloatingPointError(f"step {step}: the gradient is not finite, its norm by group {found}, samples by "
                                     f"rank {tokens}")
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.grad_clip, total)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norms, total.item(), not finite
