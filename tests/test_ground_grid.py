import torch

from data.made_up import GROUND_Z, camera_matrices
from models.ground_grid import GroundGrid, ImageFeatures
from models.projection import project_to_cameras, sample_cameras
from utils.frame import PC_RANGES

IMAGE = (64, 128)
PC_RANGE = PC_RANGES["60x30"]


def test_cells_cover_the_range_row_by_row_from_behind_left():
    grid = GroundGrid(dim=4, cell_m=1.0, pc_range=PC_RANGE)
    centres = grid.cell_centres(torch.device("cpu")).view(60, 30, 2)
    assert grid.shape == (60, 30)
    assert torch.allclose(centres[0, 0], torch.tensor([-14.5, -29.5]))
    assert torch.allclose(centres[-1, 0], torch.tensor([-14.5, 29.5]))
    assert torch.allclose(centres[0, -1], torch.tensor([14.5, -29.5]))


def test_paint_on_the_road_ahead_reaches_the_cells_ahead():
    """A colour in the image where the ground 8 m ahead projects ends up in the cell 8 m ahead, and nowhere behind."""
    grid = GroundGrid(dim=1, cell_m=1.0, pc_range=PC_RANGE)
    lidar2img = camera_matrices(IMAGE)[None]
    point = torch.tensor([[[0.5, 8.5, GROUND_Z]]])  # a cell's centre
    where, visible = project_to_cameras(point, lidar2img, IMAGE)
    assert visible[0, :, 0].tolist() == [True] + [False] * 5
    column, row = ((where[0, 0, 0] + 1) / 2 * torch.tensor([IMAGE[1], IMAGE[0]])).long().tolist()
    features = torch.zeros(1, 6, 1, *IMAGE)
    features[0, 0, 0, row - 1 : row + 2, column - 1 : column + 2] = 1.0
    centres = grid.cell_centres(torch.device("cpu"))
    cells = torch.cat([centres, torch.full((len(centres), 1), GROUND_Z)], dim=1)[None]
    sampled = sample_cameras(features, *project_to_cameras(cells, lidar2img, IMAGE)).view(60, 30)
    assert sampled[38, 15] > 0.9
    assert sampled[:30].sum() == 0, "nothing behind the car"
    assert sampled[:, :10].sum() == 0 and sampled[:, 20:].sum() == 0, "nothing far to the sides"


def test_image_features_have_a_quarter_of_the_resolution_and_mix_tokens_and_pixels():
    torch.manual_seed(0)
    features = ImageFeatures(vision_dim=8, dim=4, width=8)
    pixels, patches = torch.randn(1, 2, 3, 32, 64), torch.randn(1, 2, 8, 8)
    out = features(pixels, patches, (2, 4))
    assert out.shape == (1, 2, 4, 8, 16)
    assert not torch.allclose(out, features(pixels, patches.flip(2), (2, 4)))
    assert not torch.allclose(out, features(pixels.flip(-1), patches, (2, 4)))
