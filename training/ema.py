"""Exponential moving average of the trainable weights."""

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of a model's trainable parameters over the steps, on their device.

    The decay of step t is min(decay, (1 + t) / (10 + t)), t from 0: with a fixed one the random first weights would
    stay in the average for 1 / (1 - decay) steps (the warm-up of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self._own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._own.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights, after an optimizer step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self._average.values()), list(self._own.values()), 1 - decay)
        self.steps += 1

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the average in the model's place and the model's weights in the average's; once more undoes it."""
        for name, parameter in self._own.items():
            kept = parameter.clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the average on the CPU, by parameter name."""
        return {name: value.cpu().clone() for name, value in self._average.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on from a saved average that has taken in `steps` steps."""
        for name, value in self._average.items():
            value.copy_(state[name])
        self.steps = steps
