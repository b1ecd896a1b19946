from dataclasses import replace

import pytest
import torch

from models.alarms import SPREADS
from models.config import PARTS, PRESETS, ModelConfig
from models.criterion import MapCriterion
from models.detector import build_detector
from models.segmentation import FIRST_PROBABILITY
from tests.micro import micro_config, random_batch
from utils.optim import GROUPS, parameter_groups


def run(config, batch, train=True):
    torch.manual_seed(0)
    return build_detector(config).train(mode=train)(batch)


def test_outputs_have_the_shapes_of_the_contract():
    config = micro_config()
    outputs = run(config, random_batch(config))
    assert outputs["pred_logits"].shape == (3, 5, 3) and outputs["pred_pts"].shape == (3, 5, 4, 2)
    assert len(outputs["aux_outputs"]) == config.decoder.num_layers
    assert outputs["seg_logits"].shape == outputs["scene_logits"].shape == (3, 6, 3, *config.token_grid)
    assert outputs["ground_logits"].shape == (3, 3, 20, 10)
    assert (outputs["pred_pts"] >= 0).all() and (outputs["pred_pts"] <= 1).all()
    assert "seg_logits" not in run(config, random_batch(config), train=False)


@pytest.mark.parametrize(
    "changes", [{}, {"llm_path": "none"}, *({"without": (part,)} for part in PARTS)], ids=lambda change: str(change)
)
@pytest.mark.parametrize("counts", [(3, 0, 4), (0, 0)])
def test_every_trainable_parameter_gets_a_finite_gradient(changes, counts):
    config = micro_config(**changes)
    batch = random_batch(config, counts)
    torch.manual_seed(0)
    model = build_detector(config)
    criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
    criterion.total(criterion(model(batch), batch)).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        else:
            assert name.startswith("llm.") and parameter.grad is None


def test_each_parameter_is_in_one_group_and_none_of_the_llm():
    model = build_detector(micro_config())
    grouped = [name for members in parameter_groups(model).values() for name, _ in members]
    assert sorted(grouped) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert all(parameter_groups(model)[name] for name in GROUPS)


def test_each_part_learns_at_the_rate_of_its_group():
    """What is pretrained in `base` at the smallest, what is new on the way into the LLM with the map queries."""
    groups = parameter_groups(build_detector(micro_config()))
    assert {name: {member.split(".")[0] for member, _ in members} for name, members in groups.items()} == {
        "qformer": {"qformer"},
        "queries": {"vision", "geometry", "projection", "place", "ground_tokens", "map_queries"},
        "decoder": {"image_features", "ground_grid", "decoder", "segmentation"},
    }


def test_segmentations_begin_near_the_share_of_places_that_lines_cross():
    heads = build_detector(micro_config()).segmentation
    for last in (heads.vision[-1], heads.scene.classify[-1], heads.ground):
        torch.testing.assert_close(last.bias.sigmoid(), torch.full((3,), FIRST_PROBABILITY))


def test_tokens_enter_the_llm_as_large_as_its_own():
    torch.manual_seed(0)
    model = build_detector(micro_config())
    size_of_words = model.llm.model.get_input_embeddings().weight.square().mean().sqrt().item()
    scene = model.projection(torch.randn(2, 6, 3, 16), torch.arange(6).expand(2, -1))
    ground = model.ground_tokens(torch.randn(2, 8, 20, 10), model.place)
    places = model.place(torch.rand(50, 2))
    assert size_of_words < 0.5, "one that a forgotten scale would not have"
    for tokens, size in ((scene, 1.0), (places, 1.0), (ground, 1.0), (model.map_queries.embeddings, 0.5)):
        assert tokens.detach().square().mean().sqrt().item() == pytest.approx(size * size_of_words, rel=0.15)


@pytest.mark.parametrize(
    "part, prefixes",
    [("geometry", {"geometry"}), ("qformer", {"qformer", "projection", "segmentation.scene"}),
     ("ground_tokens", {"ground_tokens"}),
     ("decoder_sampling", {f"decoder.layers.{n}.{name}" for n in range(2) for name in ("to_ground", "norms.0")}),
     ("causal_prefix", set())],
)  # fmt: skip
def test_what_is_left_out_has_no_weights_and_changes_the_outputs(part, prefixes):
    whole, rest = micro_config(), micro_config(without=(part,))
    names = [{name for name, _ in build_detector(config).named_parameters()} for config in (whole, rest)]
    gone = names[0] - names[1]
    assert names[1] < names[0] or not prefixes
    assert gone == {name for name in names[0] if name.startswith(tuple(f"{prefix}." for prefix in prefixes))}
    models = []
    for config in (whole, rest):
        torch.manual_seed(0)
        models.append(build_detector(config).eval())
    shared = models[0].state_dict()
    with torch.no_grad():
        for value in shared.values():  # what starts at zero, as the geometry embedding does, must say something
            value.add_(0.1 * torch.randn_like(value.float()).to(value.dtype))
    models[1].load_state_dict({name: shared[name] for name in models[1].state_dict()})
    batch = random_batch(whole)
    first, second = (model(batch)["pred_pts"] for model in models)
    assert not torch.allclose(first, second, atol=1e-6)


def test_the_result_of_a_sample_does_not_depend_on_its_batch():
    config = micro_config()
    batch = random_batch(config, (2, 1))
    alone = {k: v[:1] for k, v in batch.items()}
    together = run(config, batch, train=False)["pred_pts"][:1]
    assert torch.allclose(together, run(config, alone, train=False)["pred_pts"], atol=1e-5)


def test_the_llm_and_the_decoder_look_at_the_images_through_the_calibration():
    config = micro_config()
    batch = random_batch(config)
    before = run(config, batch, train=False)
    moved = {**batch, "lidar2img": batch["lidar2img"].roll(1, dims=1)}
    after = run(config, moved, train=False)
    for first, second in zip([*before["aux_outputs"], before], [*after["aux_outputs"], after], strict=True):
        assert not torch.allclose(first["pred_logits"], second["pred_logits"], atol=1e-4)


def test_config_survives_a_trip_through_plain_types():
    import json

    for config in PRESETS.values():
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_base_has_exactly_the_queries_of_the_design():
    config = PRESETS["base"]
    assert config.num_instances * (1 + config.num_points) * config.random_llm.hidden_size == 4_300_800


@pytest.mark.parametrize(
    "change",
    [{"image_size": (15, 32)}, {"crop_top": 1.0}, {"num_points": 3}, {"pc_range": (0, 0)}, {"without": ("llm",)},
     {"without": ("qformer", "ground_tokens")}, {"without": ("qformer",), "qformer_pretrained": "blip2"}],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        micro_config(**change)


def test_every_kind_of_token_has_its_alarm():
    config = micro_config()
    batch = random_batch(config)
    outputs = run(config, batch, train=False)
    assert all(outputs[name] > 0 for name in SPREADS)
    same = {name: value[:1].repeat(3, *[1] * (value.dim() - 1)) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()}  # fmt: skip
    alike = run(config, same, train=False)
    assert all(alike[name] < 1e-4 * outputs[name] for name in SPREADS)
    for part, name in (("qformer", "scene_std"), ("ground_tokens", "ground_std")):
        found = run(micro_config(without=(part,)), batch, train=False)
        assert [other for other in SPREADS if found[other].isnan()] == [name]


def test_a_width_that_the_stem_would_cut_off_is_refused():
    with pytest.raises(ValueError, match=r"image_size=\(252, 350\): the width must be a multiple of 4 too"):
        replace(PRESETS["base"], image_size=(252, 350))
