import torch
from torch.nn import functional as F

from models.decoder import GroundSampling, VectorDecoder, VectorHead, initial_offsets, initial_references
from utils.frame import PC_RANGES, denormalize_pts, normalize_pts

PC_RANGE = PC_RANGES["60x30"]


def test_points_read_the_ground_where_they_and_their_offsets_are():
    """With features that are the cells' own coordinates, a point reads back its metres plus each offset."""
    rows, columns = 60, 30
    y, x = torch.meshgrid(torch.arange(rows) - 29.5, torch.arange(columns) - 14.5, indexing="ij")  # cells of 1 m
    ground = torch.stack([x, y])[None]  # [1, 2, Y, X]
    look = GroundSampling(dim=4, feature_dim=2, num_offsets=5, reach_m=3.0, pc_range=PC_RANGE)
    seen = []
    look.output[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pts_m = torch.tensor([[[2.5, -7.25], [-6.0, 11.0]]])
    look(torch.zeros(1, 2, 4), normalize_pts(pts_m, PC_RANGE), ground)
    expected = pts_m[:, :, None] + initial_offsets(5, 3.0)
    assert torch.allclose(seen[0].view(1, 2, 5, 2), expected, atol=1e-4)


def test_offsets_start_at_the_point_and_reach_as_far_as_asked():
    offsets = initial_offsets(16, 8.0)
    assert torch.equal(offsets[0], torch.zeros(2)) and torch.isclose(offsets[-1].norm(), torch.tensor(8.0))
    assert F.pdist(offsets).min() > 0.5


def test_references_are_spread_and_inside():
    references = initial_references(50, 20)
    assert references.shape == (50, 20, 2) and references.min() > 0 and references.max() < 1
    distance = torch.cdist(references.flatten(1), references.flatten(1)) + torch.eye(50) * 9
    assert distance.min() > 0.05, "no two lines start alike"
    centres = references.mean(1)
    assert all(((centres > low) & (centres < low + 0.5)).all(1).sum() >= 8 for low in (0.0, 0.5))


def head_that_says(line, points):
    """A head whose outputs are its biases: of the line as a whole [6] and of each point [2]."""
    head = VectorHead(dim=8, num_classes=3, pc_range=PC_RANGE)
    with torch.no_grad():
        for module, bias in ((head.line, line), (head.points[-1], points)):
            module.weight.zero_()
            module.bias.copy_(torch.tensor(bias))
    return head


def test_a_head_moves_a_line_as_a_whole_and_its_points_by_metres():
    line_m = torch.tensor([[[[-4.0, 0.0], [0.0, 0.0], [4.0, 0.0]]]])  # along x
    reference = normalize_pts(line_m, PC_RANGE)
    x = torch.randn(1, 1, 3, 8)

    def moved(line, points):
        return denormalize_pts(head_that_says(line, points)(x, reference)[1], PC_RANGE)

    still = [0.0] * 6
    assert torch.allclose(moved(still, [0.0, 0.0]), line_m, atol=1e-5)
    assert torch.allclose(moved([0.0, 0, 0, 0, 1.0, -0.5], [0.0, 0.0]), line_m + torch.tensor([2.0, -1.0]), atol=1e-5)
    assert torch.allclose(moved(still, [1.0, -0.5]), line_m + torch.tensor([2.0, -1.0]), atol=1e-5)
    assert torch.allclose(moved([1.0, 0, 0, 0, 0, 0], [0.0, 0.0]), line_m * 1.2, atol=1e-5), "stretched along x"
    turned = moved([0.0, 0, 1.0, 0, 0, 0], [0.0, 0.0])  # y grows with x
    assert torch.allclose(turned, line_m + torch.tensor([[0.0, -0.8], [0.0, 0.0], [0.0, 0.8]]), atol=1e-5)


def test_points_end_at_the_range_and_can_come_back():
    head = head_that_says([0.0] * 6, [100.0, -100.0])
    pts = head(torch.randn(1, 2, 4, 8), torch.rand(1, 2, 4, 2))[1]
    assert torch.equal(pts, torch.tensor([1.0, 0.0]).expand(1, 2, 4, 2))
    pts[..., 0].sum().backward()
    assert head.points[-1].bias.grad[0] > 0


def small_decoder():
    torch.manual_seed(0)
    return VectorDecoder(llm_dim=8, dim=8, num_layers=2, num_heads=2, mlp_size=16, dropout=0.0, feature_dim=4,
                         num_offsets=3, reach_m=4.0, num_instances=5, num_points=4, num_classes=3, pc_range=PC_RANGE)


def test_noisy_lines_change_nothing_for_the_map_queries():
    decoder = small_decoder()
    inputs = [torch.randn(2, 5, 8), torch.randn(2, 5, 4, 8), torch.randn(2, 6, 8), torch.randn(2, 4, 12, 6)]
    noisy = torch.rand(2, 7, 4, 2)
    alone, none = decoder(*inputs)
    beside, of_noisy = decoder(*inputs, noisy)
    assert none == [] and len(of_noisy) == 2 and of_noisy[0]["pred_pts"].shape == (2, 7, 4, 2)
    for before, after in zip(alone, beside, strict=True):
        assert torch.equal(before["pred_pts"], after["pred_pts"])
        assert torch.equal(before["pred_logits"], after["pred_logits"])
    again = decoder(*inputs, noisy.roll(1, dims=1))[1]
    assert torch.allclose(again[-1]["pred_pts"], of_noisy[-1]["pred_pts"].roll(1, dims=1), atol=1e-6), "a set"


def test_a_layer_refines_where_the_one_before_has_left_off_and_does_not_teach_it():
    """Only its own loss moves a head's points; DESIGN: refinement without detach does not learn."""
    decoder = small_decoder()
    outputs, _ = decoder(torch.randn(2, 5, 8), torch.randn(2, 5, 4, 8), torch.randn(2, 6, 8), torch.randn(2, 4, 12, 6))
    outputs[-1]["pred_pts"].sum().backward()
    moved = [decoder.references, *(head.points[-1].bias for head in decoder.heads)]
    assert [parameter.grad is None for parameter in moved] == [True, True, True, False]


def test_a_reference_outside_the_range_starts_at_its_border_and_can_come_back():
    decoder = small_decoder()
    with torch.no_grad():
        decoder.references[0, 0] = torch.tensor([1.5, -0.5])
    inputs = [torch.randn(2, 5, 8), torch.randn(2, 5, 4, 8), torch.randn(2, 6, 8), torch.randn(2, 4, 12, 6)]
    first = decoder(*inputs)[0][0]["pred_pts"]
    first.sum().backward()
    assert (decoder.references.grad[0, 0] > 0).all()
    with torch.no_grad():
        decoder.references[0, 0] = torch.tensor([1.0, 0.0])
    assert torch.equal(decoder(*inputs)[0][0]["pred_pts"], first)
