import torch

from data.made_up import GROUND_Z, camera_matrices
from models.ground_grid import GroundGrid, ImageFeatures
from models.projection import project_to_cameras, sample_cameras
from utils.frame import PC_RANGES

IMAGE = (64, 128)
PC_RANGE = PC_RANGES["60x30"]


def test_cells_cover_the_range_row_by_row_from_behind_left():
    grid = GroundGrid(channels=4, dim=4, cell_m=1.0, pc_range=PC_RANGE)
    centres = grid.cell_centres(torch.device("cpu")).view(60, 30, 2)
    assert grid.shape == (60, 30)
    assert torch.allclose(centres[0, 0], torch.tensor([-14.5, -29.5]))
    assert torch.allclose(centres[-1, 0], torch.tensor([-14.5, 29.5]))
    assert torch.allclose(centres[0, -1], torch.tensor([14.5, -29.5]))


def test_paint_on_the_road_ahead_reaches_the_cells_ahead():
    """A colour in the image where the ground 8 m ahead projects ends up in the cell 8 m ahead, and nowhere behind."""
    grid = GroundGrid(channels=1, dim=1, cell_m=1.0, pc_range=PC_RANGE)
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


def test_image_features_keep_all_rows_beside_what_the_tokens_know():
    torch.manual_seed(0)
    features = ImageFeatures(vision_dim=8, dim=4, width=12)
    pixels, patches = torch.randn(1, 2, 3, 32, 64), torch.randn(1, 2, 8, 8)
    detail, coarse = features(pixels, patches, (2, 4))
    assert detail.shape == (1, 2, 12, 32, 16)
    assert coarse.shape == (1, 2, 4, 2, 4)
    assert torch.equal(coarse[0, 1, :, 1, 0], features.tokens(patches)[0, 1, 4]), "row by row"
    assert not torch.allclose(detail, features(pixels.flip(-1), patches, (2, 4))[0])


def test_ground_grid_reads_a_cell_from_maps_of_every_resolution():
    """Where a map is the same all over each image, its resolution is of no matter; its content is."""
    torch.manual_seed(0)
    grid = GroundGrid(channels=5, dim=4, cell_m=3.0, pc_range=PC_RANGE)
    lidar2img, ground_z = camera_matrices(IMAGE)[None], torch.tensor([GROUND_Z])
    detail, flat = torch.randn(1, 6, 3, 64, 32), torch.randn(1, 1, 2, 1, 1)
    fine, coarse = flat.expand(1, 6, 2, 64, 32), flat.expand(1, 6, 2, 4, 8)
    ground = grid((detail, coarse), lidar2img, ground_z, IMAGE)
    assert ground.shape == (1, 4, 20, 10)
    assert torch.allclose(ground, grid((torch.cat([detail, fine], dim=2),), lidar2img, ground_z, IMAGE), atol=1e-5)
    for other in ((detail, -coarse), (-detail, coarse)):
        assert not torch.allclose(ground, grid(other, lidar2img, ground_z, IMAGE), atol=1e-2)
