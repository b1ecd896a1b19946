"""The learnable map queries that read the scene inside the LLM."""

# B batch, I instances, P points, D LLM width

import torch
from torch import Tensor, nn


class MapQueries(nn.Module):
    """I x (1 instance + P point) embeddings at the scale of the LLM's token embeddings."""

    def __init__(self, num_instances: int, num_points: int, dim: int, token_scale: float):
        super().__init__()
        self.num_instances = num_instances
        self.num_points = num_points
        self.embeddings = nn.Parameter(torch.randn(num_instances * (1 + num_points), dim) * token_scale)

    def forward(self, batch: int) -> Tensor:
        """Query tokens [B, I*(1+P), D]."""
        return self.embeddings.expand(batch, -1, -1)

    def split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Query states [B, I*(1+P), D] to instance states [B, I, D] and point states [B, I, P, D]."""
        states = states.unflatten(1, (self.num_instances, 1 + self.num_points))
        return states[:, :, 0], states[:, :, 1:]
