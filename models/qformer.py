"""Scene tokens: BLIP-2's Q-Former, once a camera, with its own query tokens."""

# B batch, V cameras, N query tokens a camera, E Q-Former width, C vision width, D LLM width

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from models.config import ModelConfig, QFormerConfig


class CameraQFormer(nn.Module):
    """Vision tokens of each camera to N scene tokens a camera."""

    def __init__(self, model: Blip2QFormerModel, num_query_tokens: int):
        super().__init__()
        self.model = model
        self.query_tokens = nn.Parameter(torch.randn(1, num_query_tokens, model.config.hidden_size) * 0.02)

    def forward(self, vision_tokens: Tensor) -> Tensor:
        """vision_tokens [B, V, K, C] to scene tokens [B, V, N, E]."""
        batch, cameras = vision_tokens.shape[:2]
        scene = self.model(
            query_embeds=self.query_tokens.expand(batch * cameras, -1, -1),
            encoder_hidden_states=vision_tokens.flatten(0, 1),  # [B*V, K, C]
        ).last_hidden_state
        return scene.unflatten(0, (batch, cameras))  # [B, V, N, E]


class SceneProjection(nn.Module):
    """Camera embedding, then the step into the LLM's width at the scale of the LLM's own token embeddings."""

    def __init__(self, scene_dim: int, llm_dim: int, num_cameras: int, token_scale: float):
        super().__init__()
        self.camera_embedding = nn.Embedding(num_cameras, scene_dim)
        nn.init.normal_(self.camera_embedding.weight, std=0.02)
        self.projection = nn.Linear(scene_dim, llm_dim)
        self.norm = nn.LayerNorm(llm_dim)
        nn.init.constant_(self.norm.weight, token_scale)

    def forward(self, scene: Tensor, camera_ids: Tensor) -> Tensor:
        """scene [B, V, N, E] and camera_ids [B, V] to [B, V*N, D]."""
        scene = scene + self.camera_embedding(camera_ids)[:, :, None]
        return self.norm(self.projection(scene)).flatten(1, 2)  # [B, V*N, D]


def qformer_hf_config(qformer: QFormerConfig, vision_dim: int) -> Blip2QFormerConfig:
    """transformers' settings of the Q-Former; what `qformer` does not say is as BLIP-2 was published."""
    return Blip2QFormerConfig(
        hidden_size=qformer.hidden_size,
        num_hidden_layers=qformer.num_layers,
        num_attention_heads=qformer.num_heads,
        intermediate_size=qformer.mlp_size,
        cross_attention_frequency=qformer.cross_attention_frequency,
        encoder_hidden_size=vision_dim,
        hidden_dropout_prob=qformer.dropout,
        attention_probs_dropout_prob=qformer.dropout,
        # For a random start: at BLIP-2's 0.02 a narrow Q-Former passes a fiftieth of what it sees into its tokens.
        initializer_range=qformer.hidden_size**-0.5,
    )


def build_qformer(config: ModelConfig) -> CameraQFormer:
    """The Q-Former with random weights; pretrained ones are loaded over them."""
    hf_config = qformer_hf_config(config.qformer, config.vision.hidden_size)
    return CameraQFormer(Blip2QFormerModel(hf_config), config.qformer.num_query_tokens)
