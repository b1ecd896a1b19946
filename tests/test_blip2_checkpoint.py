import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Model,
    BlipImageProcessor,
    LlamaConfig,
    OPTConfig,
)

from models.blip2_checkpoint import blip2_config, blip2_tensors, load_blip2
from models.config import PRESETS, ModelConfig, QFormerConfig, VisionConfig
from models.qformer import build_qformer
from models.vision import build_vision_tower
from tests.made_blip2 import CLASSES, edit_json, fresh_modules, loaded, random_blip2, save_bin, save_state
from utils.errors import UserError

# The two sections as blip2-opt-2.7b's config.json on the hub has them: all that matters is left to defaults.
HUB_CONFIG = {
    "architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2", "num_query_tokens": 32,
    "qformer_config": {"classifier_dropout": None, "model_type": "blip_2_qformer"},
    "vision_config": {"dropout": 0.0, "initializer_factor": 1.0, "model_type": "blip_2_vision_model",
                      "num_channels": 3, "projection_dim": 512},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, tuple[object, Path]]:
    """name -> (model, folder), each of the classes in shards, one as .bin in shards."""
    root = tmp_path_factory.mktemp("blip2")
    saves = {}
    for kind in CLASSES:
        model = random_blip2(kind)
        model.save_pretrained(root / kind.__name__, max_shard_size="60KB")
        assert len(list((root / kind.__name__).glob("model-*.safetensors"))) > 3
        saves[kind.__name__] = model, root / kind.__name__
    model = random_blip2(Blip2ForConditionalGeneration)
    save_bin(model, root / "bin", num_shards=6)
    saves["bin"] = model, root / "bin"
    return saves


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint to spoil."""
    random_blip2(Blip2Model).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("size", [(56, 56), (84, 84), (28, 112)])  # native, larger, as many patches in another shape
@pytest.mark.parametrize("name", [*(kind.__name__ for kind in CLASSES), "bin"])
def test_outputs_equal_transformers_to_the_last_bit(saved, name, size):
    reference, source = saved[name]
    vision, qformer = loaded(source)
    pixels = torch.randn(2, 3, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = vision(pixels)
        images = reference.vision_model(pixels.flatten(0, 1), interpolate_pos_encoding=True).last_hidden_state
        scene = qformer(tokens)
        queries = reference.query_tokens.expand(len(images), -1, -1)
        expected = reference.qformer(query_embeds=queries, encoder_hidden_states=images).last_hidden_state
    assert torch.equal(tokens.flatten(0, 1), images)
    assert torch.equal(scene.flatten(0, 1), expected)
    assert tokens.std() > 0.1 and scene.std() > 0.1
    if size == (56, 56):  # where transformers needs no interpolation, we do none either
        with torch.no_grad():
            assert torch.equal(tokens.flatten(0, 1), reference.vision_model(pixels.flatten(0, 1)).last_hidden_state)


def test_an_image_size_between_two_multiples_of_the_patch_size_is_followed(tmp_path):
    reference = random_blip2(Blip2Model, image_size=60)
    reference.save_pretrained(tmp_path)
    vision, _ = loaded(tmp_path)
    pixels = torch.randn(1, 1, 3, 60, 60)
    with torch.no_grad():
        assert torch.equal(vision(pixels)[0], reference.vision_model(pixels[0]).last_hidden_state)


def test_outputs_equal_what_transformers_calls_its_qformer_features(saved):
    reference, source = saved["Blip2Model"]
    vision, qformer = loaded(source)
    pixels = torch.randn(1, 2, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(qformer(vision(pixels))[0], reference.get_qformer_features(pixels[0]))


def test_our_normalisation_is_that_of_blip2s_processor():
    images = torch.randint(0, 256, (1, 2, 3, 28, 28), dtype=torch.uint8)
    tower = build_vision_tower(ModelConfig(image_size=(28, 28), vision=VisionConfig(
        hidden_size=16, num_layers=1, num_heads=2, mlp_size=16, patch_size=14, position_grid=2)))
    expected = BlipImageProcessor(do_resize=False)(list(images[0]), return_tensors="pt")["pixel_values"]
    assert torch.allclose(tower.normalize(images)[0], expected, atol=1e-5)


def test_a_report_says_what_came_from_where(saved):
    model, source = saved["Blip2ForConditionalGeneration"]
    report = load_blip2(*fresh_modules(source), str(source))
    weight_map = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    assert report.parts == {
        "vision tower": (len(model.vision_model.state_dict()), sum(p.numel() for p in model.vision_model.parameters())),
        "Q-Former": (len(model.qformer.state_dict()), sum(p.numel() for p in model.qformer.parameters())),
        "query tokens": (1, 5 * 32),
    }
    assert sum(report.files.values()) + sum(report.left_behind.values()) == len(weight_map)
    assert set(report.left_behind) == {"language_model", "language_projection"}
    assert str(source) in str(report) and "float32" in str(report) and "\n" not in str(report)


def test_of_image_text_retrieval_the_text_branch_stays_behind(saved):
    _, source = saved["Blip2ForImageTextRetrieval"]
    report = load_blip2(*fresh_modules(source), str(source))
    assert report.left_behind == {"embeddings": 2, "itm_head": 2, "qformer's text branch": 3 * 6,
                                  "text_projection": 2, "vision_projection": 2}


@pytest.mark.parametrize("prefix", ["model.", "blip."])
def test_names_may_stand_behind_a_prefix(saved, tmp_path, prefix):
    model, _ = saved["Blip2Model"]
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()} | {"lm_head.weight": torch.ones(2)}
    source = save_state(state, model, tmp_path / "prefixed")
    vision, qformer = loaded(source)
    assert torch.equal(qformer.query_tokens, model.query_tokens)
    assert torch.equal(vision.model.post_layernorm.weight, model.vision_model.post_layernorm.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_and_in_the_module_are_independent(tmp_path, dtype):
    model = random_blip2(Blip2Model).to(dtype)
    model.save_pretrained(tmp_path / "half")
    vision, qformer = fresh_modules(tmp_path / "half")
    vision.model.half()
    report = load_blip2(vision, qformer, str(tmp_path / "half"))
    assert report.dtypes == (str(dtype).removeprefix("torch."),)
    assert qformer.query_tokens.dtype == torch.float32 and vision.model.post_layernorm.weight.dtype == torch.float16
    weight = model.qformer.encoder.layer[0].attention.attention.query.weight
    assert torch.equal(qformer.model.encoder.layer[0].attention.attention.query.weight, weight.float())
    assert torch.equal(vision.model.post_layernorm.weight, model.vision_model.post_layernorm.weight.half())


def test_a_frozen_tower_stays_frozen_and_trainable_parts_trainable(saved):
    vision, qformer = loaded(saved["Blip2Model"][1])
    assert not any(p.requires_grad for p in vision.parameters())
    assert all(p.requires_grad for p in qformer.parameters())


def test_the_hubs_config_is_that_of_the_base_preset(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    assert blip2_config(str(tmp_path)) == (VisionConfig(), QFormerConfig())


def test_at_full_size_every_name_and_shape_is_in_transformers_model():
    text = OPTConfig(hidden_size=2560, num_hidden_layers=32, ffn_dim=10240, num_attention_heads=32, vocab_size=50304,
                     word_embed_proj_dim=2560)
    with torch.device("meta"):
        reference = Blip2ForConditionalGeneration(Blip2Config(text_config=text, **{
            key: HUB_CONFIG[key] for key in ("vision_config", "qformer_config", "num_query_tokens")}))
        vision, qformer = build_vision_tower(PRESETS["base"]), build_qformer(PRESETS["base"])
    theirs = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    ours = {name: tensor.shape for name, tensor in blip2_tensors(vision, qformer).items()}
    assert ours.items() <= theirs.items()
    assert {name.split(".")[0] for name in theirs.keys() - ours.keys()} == {"language_model", "language_projection"}
    assert sum(p.numel() for p in vision.parameters()) == 985_952_256
    assert sum(p.numel() for p in qformer.model.parameters()) == 105_137_664
    assert qformer.query_tokens.shape == (1, 32, 768)


@pytest.mark.parametrize(("section", "values", "message"), [
    (None, {"model_type": "llama"}, "model_type is 'llama', expected 'blip-2'"),
    (None, {"num_query_tokens": 0}, "num_query_tokens is 0, expected a positive whole number"),
    ("vision_config", {"hidden_act": "quick_gelu"}, "vision_config.hidden_act is 'quick_gelu', the model's 'gelu'"),
    ("vision_config", {"layer_norm_eps": 1e-5}, "vision_config.layer_norm_eps is 1e-05, the model's 1e-06"),
    ("vision_config", {"qkv_bias": False}, "vision_config.qkv_bias is False, the model's True"),
    ("vision_config", {"attention_dropout": 0.1}, "vision_config.attention_dropout is 0.1, the model's 0.0"),
    ("vision_config", {"num_attention_heads": 5}, "vision.num_heads=5: must divide hidden_size=48"),
    ("vision_config", {"image_size": [56, 56]}, r"vision_config.image_size is \[56, 56\], expected a positive whole"),
    ("vision_config", {"image_size": 13}, "vision_config.image_size is 13, expected at least the patch_size 14"),
    ("vision_config", {"qkv_bias": 1}, "vision_config.qkv_bias is 1, expected true or false"),
    ("qformer_config", {"hidden_act": "relu"}, "qformer_config.hidden_act is 'relu', the model's 'gelu'"),
    ("qformer_config", {"layer_norm_eps": 1e-6}, "qformer_config.layer_norm_eps is 1e-06, the model's 1e-12"),
    ("qformer_config", {"attention_probs_dropout_prob": 0.2}, "attention_probs_dropout_prob is 0.2, the model's 0.1"),
    ("qformer_config", {"layer_norm_eps": "tiny"}, "layer_norm_eps is 'tiny', expected a number from 0 on"),
    ("qformer_config", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
])
def test_a_config_that_our_model_cannot_follow_is_refused_by_name(folder, section, values, message):
    edit_json(folder / "config.json", section, **values)
    with pytest.raises(UserError, match=message) as caught:
        blip2_config(str(folder))
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


@pytest.mark.parametrize(("section", "values"), [
    ("vision_config", {"num_hidden_layers": 3}), ("vision_config", {"image_size": 70}),
    ("vision_config", {"num_attention_heads": 6}), ("qformer_config", {"cross_attention_frequency": 1}),
    (None, {"num_query_tokens": 7}),
])
def test_a_model_of_other_settings_than_the_checkpoint_is_refused_before_its_weights_are_looked_at(
        folder, section, values):
    modules = fresh_modules(folder)
    edit_json(folder / "config.json", section, **values)
    for weights in folder.glob("model*"):
        weights.unlink()
    (name, value), = values.items()
    with pytest.raises(UserError, match=f"{name} is {value}, the model's"):
        load_blip2(*modules, str(folder))


def test_another_architectures_folder_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model_type is 'llama', expected 'blip-2'"):
        blip2_config(str(tmp_path))


def weights_unchanged(modules: tuple, action) -> str:
    """The UserError of an action that must leave both modules as they were."""
    before = {name: tensor.clone() for name, tensor in blip2_tensors(*modules).items()}
    with pytest.raises(UserError) as caught:
        action()
    assert all(torch.equal(before[name], tensor) for name, tensor in blip2_tensors(*modules).items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def spoil(state: dict[str, Tensor], how: str) -> None:
    if how == "missing":
        for name in ("query_tokens", "vision_model.post_layernorm.bias", "qformer.layernorm.weight"):
            del state[name]
    elif how == "shape":
        state["query_tokens"] = torch.zeros(1, 6, 32)
    elif how == "quantised":
        name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        state[name] = state[name].to(torch.int8)
    elif how == "unknown":
        state["vision_model.encoder.layers.2.layer_norm1.weight"] = torch.ones(48)
    elif how == "twice":
        state["teacher.query_tokens"] = state["query_tokens"]
    else:
        state["epoch"] = 3


@pytest.mark.parametrize(("how", "message"), [
    ("missing", "3 of 101 tensors are missing, the first: vision_model.post_layernorm.bias, qformer.layernorm.weight"),
    ("shape", r"1 of 101 tensors do not fit, the first: query_tokens is \(1, 6, 32\) torch.float32, expected \(1, "),
    ("quantised", r"fc1.weight is \(80, 48\) torch.int8, expected \(80, 48\) in floating point"),
    ("unknown", "1 tensors have no place in the model, the first: vision_model.encoder.layers.2.layer_norm1.weight"),
    ("twice", "holds query_tokens under 2 names"),
    ("not tensors", "holds something other than named tensors"),
])
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(saved, tmp_path, how, message):
    model, _ = saved["Blip2Model"]
    state = dict(model.state_dict())
    spoil(state, how)
    source = save_state(state, model, tmp_path / "spoiled")
    modules = fresh_modules(source)
    error = weights_unchanged(modules, lambda: load_blip2(*modules, str(source)))
    assert re.search(message, error), error
