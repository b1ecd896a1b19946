"""The learnable map queries that read the scene inside the LLM, and know where they begin to look."""

# B batch, I instances, P points, D LLM width

import torch
from torch import Tensor, nn

from models.ground_tokens import PlaceEmbedding


class MapQueries(nn.Module):
    """I x (1 instance + P point) embeddings at the scale of the LLM's token embeddings."""

    def __init__(self, num_instances: int, num_points: int, dim: int, token_scale: float):
        super().__init__()
        self.num_instances = num_instances
        self.num_points = num_points
        # Half of the place's size, so that at first the place decides what a query attends to.
        self.embeddings = nn.Parameter(torch.randn(num_instances * (1 + num_points), dim) * token_scale / 2)

    def forward(self, batch: int, references: Tensor, place: PlaceEmbedding) -> Tensor:
        """Query tokens [B, I*(1+P), D]; references [I, P, 2] in [0, 1], the lines that the decoder starts from.

        A point query is told its own place, an instance query the mean of its points'. What the decoder learns of
        the references is not changed by it.
        """
        points = place(references.detach().clamp(0, 1))  # [I, P, D]
        places = torch.cat([points.mean(1, keepdim=True), points], dim=1).flatten(0, 1)
        return (self.embeddings + places).expand(batch, -1, -1)

    def split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Query states [B, I*(1+P), D] to instance states [B, I, D] and point states [B, I, P, D]."""
        states = states.unflatten(1, (self.num_instances, 1 + self.num_points))
        return states[:, :, 0], states[:, :, 1:]
