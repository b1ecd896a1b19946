"""BLIP-2's vision tower on six cameras."""

# B batch, V cameras, h x w patches, C width

import torch
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel

from models.config import ModelConfig, VisionConfig

# Mean and standard deviation of CLIP's images, RGB in [0, 1]; BLIP-2's processor uses the same.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionTower(nn.Module):
    """Images to patch tokens; a frozen tower runs without gradient and in eval behaviour for ever."""

    def __init__(self, model: Blip2VisionModel, trainable: bool):
        super().__init__()
        self.model = model
        self.trainable = trainable
        model.requires_grad_(trainable)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(1, 3, 1, 1) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(1, 3, 1, 1) * 255.0, persistent=False)
        self.train()

    def train(self, mode: bool = True) -> "VisionTower":
        return super().train(mode and self.trainable)

    def normalize(self, images: Tensor) -> Tensor:
        """Images uint8 [B, V, 3, H, W] to pixels of CLIP's mean and standard deviation, same shape."""
        return (images.float() - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, V, 3, H, W] to tokens [B, V, 1 + h*w, C], the class token first.

        Under autocast they are as its last operator gives them (a GPU's layer norm: float32), else as precise as the
        pixels.
        """
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            inputs = pixels.flatten(0, 1).to(self.model.dtype)
            tokens = self.model(inputs, interpolate_pos_encoding=True).last_hidden_state
        if not torch.is_autocast_enabled(pixels.device.type):
            tokens = tokens.to(pixels.dtype)
        return tokens.unflatten(0, pixels.shape[:2])  # [B, V, 1+h*w, C]


def vision_hf_config(vision: VisionConfig) -> Blip2VisionConfig:
    """transformers' settings of the tower; what `vision` does not say is as BLIP-2 was published."""
    return Blip2VisionConfig(
        hidden_size=vision.hidden_size,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_heads,
        intermediate_size=vision.mlp_size,
        patch_size=vision.patch_size,
        image_size=vision.patch_size * vision.position_grid,
        # BLIP-2's published initial range is 1e-10, meant for weights that are always loaded.
        initializer_range=0.02,
        attn_implementation="sdpa",
    )


def build_vision_tower(config: ModelConfig, dtype: torch.dtype = torch.float32) -> VisionTower:
    """The tower: a trainable one in float32 with random weights, a frozen one in dtype.

    Where config names pretrained weights a frozen tower's content is left open, since drawing it would take longer
    than loading it.
    """
    hf_config = vision_hf_config(config.vision)
    if config.vision.trainable:
        return VisionTower(Blip2VisionModel(hf_config), trainable=True)
    if config.qformer_pretrained == "none":
        return VisionTower(Blip2VisionModel(hf_config).to(dtype), trainable=False)
    device = torch.get_default_device()
    with torch.device("meta"):
        model = Blip2VisionModel(hf_config).to(dtype)
    return VisionTower(model.to_empty(device=device), trainable=False)
