"""Ground features as tokens that the LLM reads beside the Q-Former's, and the embedding of places on the ground.

A scene token of the Q-Former stands for a whole camera, and what the LLM's attention averages of such tokens tells map
queries next to nothing: by themselves they wait a thousand steps and more for an answer. A ground token stands for one
place, and says which in the same terms as the map queries.
"""

# B batch, F ground features, Y x X ground cells, R x C tokens (forward, right), D LLM width

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.sunflower import sunflower
from utils.frame import denormalize_pts

NUM_WAVES = 128
LENGTH_M = 4.0  # two places this far apart have exp(-1/2) in common


class PlaceEmbedding(nn.Module):
    """Gaussian Fourier features (arXiv 2006.10739) of points on the ground, and a learned step into the LLM's width.

    Ground tokens and map queries share it: what a query is near to is like it, and attention looks for what is alike.
    """

    def __init__(self, dim: int, pc_range: tuple[float, ...], scale: float):
        super().__init__()
        self.pc_range = pc_range
        self.scale = scale
        # As long as those of a two-dimensional normal distribution, evenly spread instead of drawn.
        share = (torch.arange(NUM_WAVES) + 0.5) / NUM_WAVES
        waves = sunflower((-2 * (1 - share).log()).sqrt() / LENGTH_M)  # [W, 2], radians a metre
        self.register_buffer("waves", waves.t().contiguous(), persistent=False)
        self.projection = nn.Linear(2 * NUM_WAVES, dim, bias=False)
        nn.init.normal_(self.projection.weight, std=1 / math.sqrt(NUM_WAVES))  # sine and cosine square to W

    def forward(self, pts: Tensor) -> Tensor:
        """pts [..., 2] in [0, 1] of pc_range to [..., D] whose root mean square is `scale`.

        It stays so: places that grow drown what the ground tokens have seen.
        """
        with torch.autocast(pts.device.type, enabled=False):
            phase = denormalize_pts(pts.float(), self.pc_range) @ self.waves.float()
        places = self.projection(torch.cat([phase.sin(), phase.cos()], dim=-1))
        return self.scale * F.rms_norm(places.float(), places.shape[-1:])


class GroundTokens(nn.Module):
    """Ground features [B, F, Y, X] to R*C tokens, each of a square of the ground, row by row."""

    def __init__(self, feature_dim: int, llm_dim: int, grid_shape: tuple[int, int], cells_per_side: int,
                 token_scale: float):
        super().__init__()
        self.cells_per_side = cells_per_side
        self.grid_shape = grid_shape
        # No bias: the norm over the squares takes it away again, and Adam would only walk it along by rounding.
        self.squares = nn.Conv2d(feature_dim, llm_dim, cells_per_side, stride=cells_per_side, bias=False)
        self.norm = nn.LayerNorm(llm_dim)
        nn.init.constant_(self.norm.weight, token_scale)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tokens; the last ones reach beyond the range where the cells do not divide."""
        return tuple(math.ceil(cells / self.cells_per_side) for cells in self.grid_shape)

    def centres(self, device: torch.device) -> Tensor:
        """Centres of the squares in [0, 1] of pc_range, [R*C, 2]."""
        y, x = ((torch.arange(tokens, device=device) + 0.5) * self.cells_per_side / cells
                for tokens, cells in zip(self.shape, self.grid_shape, strict=True))
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([x, y], dim=-1).flatten(0, 1)

    def forward(self, ground: Tensor, place: PlaceEmbedding) -> Tensor:
        """Returns [B, R*C, D] at the scale of the LLM's token embeddings."""
        beyond = [tokens * self.cells_per_side - cells
                  for tokens, cells in zip(self.shape, self.grid_shape, strict=True)]
        squares = self.squares(F.pad(ground, (0, beyond[1], 0, beyond[0]))).flatten(2).float()  # [B, D, R*C]
        # Each channel's mean over the squares says nothing of the scene, yet drowns what does.
        content = F.instance_norm(squares).transpose(1, 2)
        return self.norm(content + place(self.centres(ground.device)) / place.scale)
