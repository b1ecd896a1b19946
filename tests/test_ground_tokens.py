from dataclasses import replace

import pytest
import torch

from models.detector import build_detector
from models.ground_tokens import GroundTokens, PlaceEmbedding
from models.llm.random_llama import LIKENESS, build_random_llama, random_weights
from tests.micro import micro_config, random_batch
from utils.frame import PC_RANGES, normalize_pts

PC_RANGE = PC_RANGES["60x30"]


def places(dim=1024, scale=0.3):
    return PlaceEmbedding(dim, PC_RANGE, scale)


def test_places_are_as_large_as_token_embeddings_and_alike_only_when_near():
    torch.manual_seed(0)
    place = places()
    here = torch.tensor([[2.0, 3.0], [-9.0, 20.0]])
    code = place(normalize_pts(here, PC_RANGE))
    assert code.square().mean().sqrt().item() == pytest.approx(0.3, rel=0.05)

    def likeness(metres, angle):
        there = here + metres * torch.tensor([angle.cos(), angle.sin()])
        return torch.cosine_similarity(code, place(normalize_pts(there, PC_RANGE)), dim=-1)

    for angle in torch.linspace(0, 6.28, 12):
        # Gaussian features: exp(-d^2 / (2 * 4 m * 4 m)).
        torch.testing.assert_close(likeness(1.0, angle), torch.full((2,), 0.969), atol=0.03, rtol=0)
        torch.testing.assert_close(likeness(4.0, angle), torch.full((2,), 0.607), atol=0.1, rtol=0)
        assert likeness(15.0, angle).abs().max() < 0.2


def test_places_never_grow_over_what_a_ground_token_has_seen():
    torch.manual_seed(0)
    place, tokens = places(dim=64), GroundTokens(4, 64, (80, 40), 5, token_scale=0.3)
    here = tokens.centres(torch.device("cpu"))
    with torch.no_grad():
        before = place(here)
        place.projection.weight.mul_(50)  # as far as Adam may walk
        torch.testing.assert_close(place(here), before)
        torch.testing.assert_close(before.square().mean(-1).sqrt(), torch.full((len(here),), 0.3))
        seen = tokens(torch.randn(40, 4, 80, 40), place)  # [B, R*C, D]
    assert seen.std(0).mean() > 0.6 * seen.std(), "half of a token's size is where it lies, half what it has seen"


def test_the_same_places_on_every_machine():
    torch.manual_seed(1)
    first = places().waves
    torch.manual_seed(2)
    assert torch.equal(first, places().waves) and "waves" not in places().state_dict()  # it need not be saved


@pytest.mark.parametrize(("grid", "side", "shape"), [((80, 40), 5, (16, 8)), ((7, 5), 3, (3, 2))])
def test_a_token_reads_its_own_square_of_the_ground(grid, side, shape):
    torch.manual_seed(0)
    tokens = GroundTokens(4, 16, grid, side, 0.1)
    assert tokens.shape == shape
    square = torch.arange(shape[0] * shape[1])
    centre = tokens.centres(torch.device("cpu"))  # [R*C, 2] as x, y
    row, column = square // shape[1], square % shape[1]
    expected = torch.stack([(column + 0.5) * side / grid[1], (row + 0.5) * side / grid[0]], dim=1)
    torch.testing.assert_close(centre, expected)
    ground = torch.randn(1, 4, *grid)
    lit = ground.clone()
    lit[0, :, grid[0] - 1, 0] += 5.0  # the cell of the largest y and the smallest x: last row, first column
    with torch.no_grad():
        before, after = (tokens.squares(torch.nn.functional.pad(x, (0, shape[1] * side - grid[1],
                                                                    0, shape[0] * side - grid[0])))
                         for x in (ground, lit))  # fmt: skip
        moved = (before - after).abs().sum((0, 1)).flatten().nonzero().flatten()
        assert moved.tolist() == [(shape[0] - 1) * shape[1]]
        out = tokens(lit, places(16, 0.1))
    assert out.shape == (1, shape[0] * shape[1], 16)
    assert out.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.01)


def test_both_kinds_of_tokens_tell_scenes_apart_from_the_start():
    torch.manual_seed(0)
    config = micro_config()
    outputs = build_detector(config)(random_batch(config, (1, 1, 1, 1)))
    assert outputs["ground_std"] > 0.2 and outputs["scene_std"] > 0.2


def test_map_queries_look_where_the_decoder_begins():
    """Moving the references moves the queries' places, and no gradient of the places moves the references."""
    torch.manual_seed(0)
    model = build_detector(micro_config())
    queries = model.map_queries(1, model.decoder.references, model.place)
    queries.square().sum().backward()
    assert model.decoder.references.grad is None and model.place.projection.weight.grad is not None
    moved = model.map_queries(1, model.decoder.references.roll(1, 0), model.place)
    difference = (moved - queries).abs().amax(-1)
    assert (difference > 1e-3).all()


@pytest.mark.parametrize("drawn_on_cpu", [0, 10**9])
def test_heads_of_the_random_llama_look_for_what_is_alike(monkeypatch, drawn_on_cpu):
    monkeypatch.setattr("models.llm.random_llama._DRAWN_ON_CPU", drawn_on_cpu)
    config = replace(micro_config().random_llm, hidden_size=64, num_layers=2)
    model = build_random_llama(config)
    weights = dict(random_weights(model, config, torch.device("cpu"), torch.float32))
    assert weights.keys() == dict(model.named_parameters()).keys()
    queries = [name for name in weights if ".q_proj." in name]
    assert len(queries) == 2 and not torch.equal(*(weights[name] for name in queries))
    for name in queries:
        assert torch.equal(weights[name], weights[name.replace(".q_proj.", ".k_proj.")])
        assert weights[name].std().item() == pytest.approx(LIKENESS * 64**-0.5, rel=0.05)
        other = weights[name.replace(".q_proj.", ".v_proj.")]
        assert other.std().item() == pytest.approx(64**-0.5, rel=0.05)
