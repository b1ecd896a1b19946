"""Image features laid out on the ground: where the decoder looks for lines.

Fine features are sampled where the cells of a grid over pc_range project into the cameras (DETR3D's sampling, arXiv
2110.06922, on a fixed set of ground points), then a few convolutions let neighbouring cells talk.
"""

# B batch, V cameras, C vision width, F feature channels, h x w patches, Y x X cells (forward, right)

import torch
from torch import Tensor, nn

from models.projection import project_to_cameras, sample_cameras
from utils.frame import denormalize_pts


class ImageFeatures(nn.Module):
    """What the vision tokens know of their patches, and a small convolutional stem's detail.

    A token of the tower covers a patch of tens of pixels of the original image, far more than a lane marking is
    wide; the stem brings back what the patch has averaged away. It keeps all rows of the image: seen from a car, the
    ground from 20 to 30 metres ahead lies within a few of them.
    """

    def __init__(self, vision_dim: int, dim: int, width: int = 24):
        super().__init__()
        self.channels = width + dim  # of both together
        self.tokens = nn.Sequential(nn.LayerNorm(vision_dim), nn.Linear(vision_dim, dim))
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 3, 5, stride=(1, 2), padding=2), nn.GroupNorm(4, width // 3), nn.GELU(),
            nn.Conv2d(width // 3, width, 3, stride=(1, 2), padding=1), nn.GroupNorm(4, width), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.GELU(),
        )

    def forward(self, pixels: Tensor, patches: Tensor, token_grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B, V, 3, H, W] and patch tokens [B, V, h*w, C] to the stem's features
        [B, V, width, H, W/4], rounded up, and those of the tokens [B, V, dim, h, w]."""
        detail = self.stem(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        return detail, self.tokens(patches).transpose(2, 3).unflatten(3, token_grid)


class GroundGrid(nn.Module):
    """Image features to ground features [B, F, Y, X]; row 0 is y_min, column 0 is x_min."""

    def __init__(self, channels: int, dim: int, cell_m: float, pc_range: tuple[float, ...], width: int = 48):
        super().__init__()
        self.pc_range = pc_range
        self.shape = tuple(round((pc_range[3 + axis] - pc_range[axis]) / cell_m) for axis in (1, 0))  # Y, X
        self.input = nn.Linear(channels, width)
        # Growing dilation: a cell hears of a line 16 cells away, so that a dashed one is seen as one, and a crossing
        # as a whole. The last block mends what dilation leaves between cells that never met.
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=d, dilation=d), nn.GroupNorm(4, width), nn.GELU())
            for d in (1, 2, 4, 8, 1)
        )
        self.output = nn.Conv2d(width, dim, 1)

    def cell_centres(self, device: torch.device) -> Tensor:
        """Centres of the cells in metres, row by row, [Y*X, 2]."""
        rows, columns = self.shape
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(columns, device=device) + 0.5) / columns
        y, x = torch.meshgrid(y, x, indexing="ij")
        return denormalize_pts(torch.stack([x, y], dim=-1).flatten(0, 1), self.pc_range)

    def forward(
        self, features: tuple[Tensor, ...], lidar2img: Tensor, ground_z: Tensor, image_size: tuple[int, int]
    ) -> Tensor:
        """features, each [B, V, F, h, w] with F, h and w of its own, F adding up to the channels; lidar2img
        [B, V, 4, 4] to pixels of image_size (H, W); ground_z [B], the road plane in metres. Returns [B, dim, Y, X]."""
        with torch.autocast(ground_z.device.type, enabled=False):
            centres = self.cell_centres(ground_z.device).expand(len(ground_z), -1, -1)  # [B, Y*X, 2]
            height = ground_z.float()[:, None, None].expand(-1, centres.shape[1], 1)
            grid, visible = project_to_cameras(torch.cat([centres, height], dim=-1), lidar2img.float(), image_size)
        seen = torch.cat([sample_cameras(each, grid, visible) for each in features], dim=1)  # [B, channels, Y*X]
        x = self.input(seen.transpose(1, 2)).transpose(1, 2).contiguous().unflatten(2, self.shape)
        for block in self.blocks:
            x = x + block(x)
        return self.output(x)
