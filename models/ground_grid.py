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

    centred: the kernels that halve the width are of even width, so that a feature lies in the middle of the four pixels
    it stands for, where sample_cameras looks for it. Odd ones put it 1.5 pixels beside, and see more to average.
    """

    def __init__(self, vision_dim: int, dim: int, centred: bool, width: int = 24):
        super().__init__()
        self.channels = width + dim  # of both together
        self.tokens = nn.Sequential(nn.LayerNorm(vision_dim), nn.Linear(vision_dim, dim))
        first, second = ((5, 4), (3, 4)) if centred else ((5, 5), (3, 3))
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 3, first, stride=(1, 2), padding=(2, (first[1] - 1) // 2)),
            nn.GroupNorm(4, width // 3), nn.GELU(),
            nn.Conv2d(width // 3, width, second, stride=(1, 2), padding=1), nn.GroupNorm(4, width), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.GELU(),
        )

    def forward(self, pixels: Tensor, patches: Tensor, token_grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B, V, 3, H, W] and patch tokens [B, V, h*w, C] to the stem's features
        [B, V, width, H, W/4], rounded up if not centred, and those of the tokens [B, V, dim, h, w]."""
        detail = self.stem(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        return detail, self.tokens(patches).transpose(2, 3).unflatten(3, token_grid)


class GroundGrid(nn.Module):
    """Image features to ground features [B, F, Y, X]; row 0 is y_min, column 0 is x_min.

    cell_samples: into how many places along either side a cell is divided, each of which is looked up in the images.
    Near the car a cell is tens of pixels wide, and a line that passes beside the one place of an undivided cell is not
    seen by it.
    """

    def __init__(self, channels: int, dim: int, cell_m: float, cell_samples: int, pc_range: tuple[float, ...],
                 width: int = 48):
        super().__init__()
        self.pc_range = pc_range
        self.cell_samples = cell_samples
        self.shape = tuple(round((pc_range[3 + axis] - pc_range[axis]) / cell_m) for axis in (1, 0))  # Y, X
        self.input = nn.Linear(channels, width)
        # Growing dilation: a cell hears of a line 16 cells away, so that a dashed one is seen as one, and a crossing
        # as a whole. The last block mends what dilation leaves between cells that never met.
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=d, dilation=d), nn.GroupNorm(4, width), nn.GELU())
            for d in (1, 2, 4, 8, 1)
        )
        self.output = nn.Conv2d(width, dim, 1)

    def places(self, device: torch.device) -> Tensor:
        """What is looked up, in metres: cell_samples^2 places a cell, evenly over it, [Y*X, cell_samples^2, 2]."""
        n = self.cell_samples
        y, x = ((torch.arange(cells * n, device=device).view(cells, n) + 0.5) / (cells * n) for cells in self.shape)
        shape = (*self.shape, n, n)
        places = torch.stack([x[None, :, None].expand(shape), y[:, None, :, None].expand(shape)], dim=-1)
        return denormalize_pts(places.flatten(2, 3).flatten(0, 1), self.pc_range)

    def forward(
        self, detail: Tensor, tokens: Tensor, lidar2img: Tensor, ground_z: Tensor, image_size: tuple[int, int]
    ) -> Tensor:
        """detail [B, V, F, H, W'] and the coarse tokens [B, V, G, h, w], F + G channels; lidar2img [B, V, 4, 4] to
        pixels of image_size (H, W); ground_z [B], the road plane in metres. Returns [B, dim, Y, X]."""
        places = self.places(ground_z.device)

        def look_up(features: Tensor, where: Tensor) -> Tensor:
            """Features [B, F, N] of places [N, 2] in metres."""
            with torch.autocast(ground_z.device.type, enabled=False):
                where = where.expand(len(ground_z), -1, -1)  # [B, N, 2]
                height = ground_z.float()[:, None, None].expand(-1, where.shape[1], 1)
                grid, visible = project_to_cameras(torch.cat([where, height], dim=-1), lidar2img.float(), image_size)
            return sample_cameras(features, grid, visible)

        detail = look_up(detail, places.flatten(0, 1)).unflatten(2, places.shape[:2]).mean(3)  # [B, F, Y*X]
        seen = torch.cat([detail, look_up(tokens, places.mean(1))], dim=1)  # [B, F + G, Y*X]
        x = self.input(seen.transpose(1, 2)).transpose(1, 2).contiguous().unflatten(2, self.shape)
        for block in self.blocks:
            x = x + block(x)
        return self.output(x)
