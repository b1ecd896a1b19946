"""Small random BLIP-2 checkpoints as transformers and the hub lay them out."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, Blip2Model, OPTConfig

from models.blip2_checkpoint import blip2_config, load_blip2
from models.config import ModelConfig
from models.qformer import CameraQFormer, build_qformer
from models.vision import VisionTower, build_vision_tower

VISION = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80,
          "image_size": 56, "patch_size": 14}
QFORMER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
           "vocab_size": 50, "max_position_embeddings": 16}
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4, "vocab_size": 100,
        "word_embed_proj_dim": 24, "max_position_embeddings": 32}
CLASSES = [Blip2Model, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval]


def random_blip2(kind: type, image_size: int = VISION["image_size"]) -> nn.Module:
    """A BLIP-2 whose every parameter is random: as transformers makes it, query tokens and biases are zero."""
    qformer = {**QFORMER, "use_qformer_text_input": kind is Blip2ForImageTextRetrieval}
    model = kind(Blip2Config(vision_config={**VISION, "image_size": image_size}, qformer_config=qformer,
                             text_config=OPTConfig(**TEXT), num_query_tokens=5))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_bin(model: nn.Module, folder: Path, num_shards: int) -> None:
    """PyTorch's own format in shards with an index, which transformers no longer writes but the hub still has."""
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    state = model.state_dict()
    file_of = {name: f"pytorch_model-{i * num_shards // len(state) + 1:05d}-of-{num_shards:05d}.bin"
               for i, name in enumerate(state)}
    for file in set(file_of.values()):
        torch.save({name: state[name].clone() for name in state if file_of[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def save_state(state: dict[str, Tensor], model: nn.Module, folder: Path) -> Path:
    """One .bin file with these tensors beside the model's config.json."""
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def fresh_modules(source: Path) -> tuple[VisionTower, CameraQFormer]:
    """Both modules with random weights, of the architecture of the checkpoint."""
    vision, qformer = blip2_config(str(source))
    config = ModelConfig(image_size=(56, 56), vision=vision, qformer=qformer)
    return build_vision_tower(config), build_qformer(config).eval()


def loaded(source: Path) -> tuple[VisionTower, CameraQFormer]:
    vision, qformer = fresh_modules(source)
    load_blip2(vision, qformer, str(source))
    return vision, qformer


def edit_json(path: Path, section: str | None, **values) -> None:
    content = json.loads(path.read_text())
    (content[section] if section else content).update(values)
    path.write_text(json.dumps(content))


def language_shards(folder: Path) -> list[Path]:
    """The shards in which there is nothing but the language model and its projection."""
    weight_map = json.loads(next(folder.glob("*.index.json")).read_text())["weight_map"]
    parts = {file: {name.split(".")[0] for name, of in weight_map.items() if of == file}
             for file in weight_map.values()}
    return [folder / file for file, held in parts.items() if held <= {"language_model", "language_projection"}]
