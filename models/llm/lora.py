"""Low-rank additions to frozen linear layers (LoRA, Hu et al., 2021).

They hang on the layers as hooks instead of wrapping them, so every frozen weight keeps the name by which checkpoints
identify it, quantised layers need no case of their own, and `lora_A` and `lora_B` are what peft calls so.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.llm.quantization import linear_layers


class LowRankUpdate(nn.Module):
    """x -> scale * B A x, in the precision of x; the weights are float32. B starts at zero, so the update does too."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float):
        super().__init__()
        # Drawn on torch's default device, like everything that trains, so that a seed means the same everywhere.
        lora_a = nn.init.kaiming_uniform_(torch.empty(rank, linear.in_features), a=math.sqrt(5))
        self.lora_A = nn.Parameter(lora_a.to(linear.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.scale


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """Give each linear layer of a model (attention and MLP projections) a trainable update scaled by alpha / rank.

    Raises UserError for a model that has none.
    """
    for linear in linear_layers(model, f"--lora-rank {rank}").values():
        attach_update(linear, LowRankUpdate(linear, rank, alpha / rank))


def attach_update(linear: nn.Module, update: LowRankUpdate) -> None:
    """Let a linear layer, of whatever kind, add the update of its input to its output."""
    linear.lora = update
    linear.register_forward_hook(_add_update)


def _add_update(linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + linear.lora(inputs[0]).to(output.dtype)
