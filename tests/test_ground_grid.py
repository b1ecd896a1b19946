import pytest
import torch

from data.made_up import GROUND_Z, camera_matrices
from models.ground_grid import GroundGrid, ImageFeatures
from models.projection import project_to_cameras, sample_cameras
from utils.frame import PC_RANGES

IMAGE = (64, 128)
PC_RANGE = PC_RANGES["60x30"]


def test_cells_cover_the_range_row_by_row_from_behind_left():
    grid = GroundGrid(channels=4, dim=4, cell_m=1.0, cell_samples=1, pc_range=PC_RANGE)
    centres = grid.places(torch.device("cpu")).view(60, 30, 2)
    assert grid.shape == (60, 30)
    assert torch.allclose(centres[0, 0], torch.tensor([-14.5, -29.5]))
    assert torch.allclose(centres[-1, 0], torch.tensor([-14.5, 29.5]))
    assert torch.allclose(centres[0, -1], torch.tensor([14.5, -29.5]))


def test_places_divide_each_cell_evenly():
    divided, whole = (GroundGrid(4, 4, 1.0, samples, PC_RANGE).places(torch.device("cpu")) for samples in (2, 1))
    assert divided.shape == (1800, 4, 2)
    steps = torch.tensor([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]])
    assert torch.allclose(divided - whole, steps.expand(1800, 4, 2), atol=1e-5)


def test_a_divided_cell_sees_a_line_beside_its_centre():
    """A line a third of a metre beside all centres, thinner than the distance to them."""
    lidar2img, ground_z = camera_matrices(IMAGE)[None], torch.tensor([GROUND_Z])
    along = torch.stack([torch.full((400,), 0.5 + 0.25), torch.linspace(4.0, 12.0, 400)], dim=1)
    points = torch.cat([along, torch.full((400, 1), GROUND_Z)], dim=1)[None]
    where, visible = project_to_cameras(points, lidar2img, IMAGE)
    detail = torch.zeros(1, 6, 1, 512, 1024)
    place = ((where[0, 0, visible[0, 0]] + 1) / 2 * torch.tensor([1024, 512])).long()
    detail[0, 0, 0, place[:, 1], place[:, 0]] = 1.0
    seen = {}
    for samples in (1, 2):
        grid = GroundGrid(2, 1, 1.0, samples, PC_RANGE)
        inputs = []
        grid.input.register_forward_hook(lambda module, given, output, inputs=inputs: inputs.append(given[0]))
        grid(detail, torch.zeros(1, 6, 1, 4, 8), lidar2img, ground_z, IMAGE)
        seen[samples] = inputs[0][0, :, 0].view(60, 30)[35:41, 15]  # from 5 to 11 m ahead, 0 to 1 m to the right
    assert seen[1].abs().max() < 1e-6 and (seen[2] > 0).all()


def test_paint_on_the_road_ahead_reaches_the_cells_ahead():
    """A colour in the image where the ground 8 m ahead projects ends up in the cell 8 m ahead, and nowhere behind."""
    grid = GroundGrid(channels=1, dim=1, cell_m=1.0, cell_samples=1, pc_range=PC_RANGE)
    lidar2img = camera_matrices(IMAGE)[None]
    point = torch.tensor([[[0.5, 8.5, GROUND_Z]]])  # a cell's centre
    where, visible = project_to_cameras(point, lidar2img, IMAGE)
    assert visible[0, :, 0].tolist() == [True] + [False] * 5
    column, row = ((where[0, 0, 0] + 1) / 2 * torch.tensor([IMAGE[1], IMAGE[0]])).long().tolist()
    features = torch.zeros(1, 6, 1, *IMAGE)
    features[0, 0, 0, row - 1 : row + 2, column - 1 : column + 2] = 1.0
    centres = grid.places(torch.device("cpu")).flatten(0, 1)
    cells = torch.cat([centres, torch.full((len(centres), 1), GROUND_Z)], dim=1)[None]
    sampled = sample_cameras(features, *project_to_cameras(cells, lidar2img, IMAGE)).view(60, 30)
    assert sampled[38, 15] > 0.9
    assert sampled[:30].sum() == 0, "nothing behind the car"
    assert sampled[:, :10].sum() == 0 and sampled[:, 20:].sum() == 0, "nothing far to the sides"


def test_image_features_keep_all_rows_beside_what_the_tokens_know():
    torch.manual_seed(0)
    features = ImageFeatures(vision_dim=8, dim=4, centred=True, width=12)
    pixels, patches = torch.randn(1, 2, 3, 32, 64), torch.randn(1, 2, 8, 8)
    detail, coarse = features(pixels, patches, (2, 4))
    assert detail.shape == (1, 2, 12, 32, 16)
    assert coarse.shape == (1, 2, 4, 2, 4)
    assert torch.equal(coarse[0, 1, :, 1, 0], features.tokens(patches)[0, 1, 4]), "row by row"
    assert not torch.allclose(detail, features(pixels.flip(-1), patches, (2, 4))[0])


def test_a_feature_of_a_centred_stem_lies_in_the_middle_of_its_pixels():
    """Mirrored kernels make of the mirrored image the mirrored features; off the middle they are shifted."""
    for centred in (True, False):
        torch.manual_seed(0)
        stem = ImageFeatures(vision_dim=8, dim=4, centred=centred, width=12).stem
        pixels = torch.randn(2, 3, 16, 64)
        features = stem(pixels)
        with torch.no_grad():
            for layer in stem[::3]:
                layer.weight.copy_(layer.weight.flip(-1))
        assert features.shape == (2, 12, 16, 16)
        assert torch.allclose(stem(pixels.flip(-1)).flip(-1), features, atol=1e-5) == centred


@pytest.mark.parametrize("cell_samples", [1, 2])
def test_ground_grid_reads_a_cell_from_maps_of_every_resolution(cell_samples):
    """Where a map is the same all over each image, its resolution is of no matter; its content is."""
    torch.manual_seed(0)
    grid = GroundGrid(channels=5, dim=4, cell_m=3.0, cell_samples=cell_samples, pc_range=PC_RANGE)
    lidar2img, ground_z = camera_matrices(IMAGE)[None], torch.tensor([GROUND_Z])
    detail, flat = torch.randn(1, 6, 3, 64, 32), torch.randn(1, 1, 2, 1, 1)
    fine, coarse = flat.expand(1, 6, 2, 64, 32), flat.expand(1, 6, 2, 4, 8)
    ground = grid(detail, coarse, lidar2img, ground_z, IMAGE)
    assert ground.shape == (1, 4, 20, 10)
    assert torch.allclose(ground, grid(detail, fine, lidar2img, ground_z, IMAGE), atol=1e-5)
    for other in ((detail, -coarse), (-detail, coarse)):
        assert not torch.allclose(ground, grid(*other, lidar2img, ground_z, IMAGE), atol=1e-2)
