"""The tiny preset at a tenth of its size, and batches that fit it."""

from dataclasses import replace
from pathlib import Path

import torch

from data import made_up
from models.config import PRESETS, DecoderConfig, ModelConfig, QFormerConfig, RandomLLMConfig, VisionConfig
from models.detector import build_detector
from utils.checkpoint import CHECKPOINT_KEYS, frozen_identity, save_checkpoint, trainable_state


def micro_config(**changes) -> ModelConfig:
    """The tiny preset again at a tenth of its size, for tests that only need it to run."""
    config = replace(
        PRESETS["tiny"], image_size=(16, 32), num_instances=5, num_points=4,
        vision=VisionConfig(hidden_size=16, num_layers=1, num_heads=2, mlp_size=32, patch_size=8, position_grid=4,
                            trainable=True),
        qformer=QFormerConfig(hidden_size=16, num_layers=2, num_heads=2, mlp_size=32, num_query_tokens=3, dropout=0.0),
        random_llm=RandomLLMConfig(hidden_size=16, num_layers=2, num_heads=2, mlp_size=32, vocab_size=64),
        decoder=DecoderConfig(dim=16, num_layers=2, num_heads=2, mlp_size=32, feature_dim=8, cell_m=3.0, num_offsets=3),
    )
    return replace(config, **changes)


def random_batch(config: ModelConfig, counts: tuple[int, ...] = (3, 0, 4), seed: int = 0) -> dict:
    """A made-up batch for a model of this config."""
    return made_up.random_batch(config.image_size, config.num_points, counts, seed)


def save_shaken_checkpoint(path: Path, **changes) -> Path:
    """A checkpoint of the micro model with noise on its weights: as it starts, it says the same of every image."""
    torch.manual_seed(0)
    config = micro_config(**changes)
    model = build_detector(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    checkpoint = dict.fromkeys(CHECKPOINT_KEYS, 0) | {
        "model_state_dict": trainable_state(model),
        "model_config": config.to_dict(),
        "frozen_identity": frozen_identity(model),
    }
    save_checkpoint(checkpoint, path)
    return path
