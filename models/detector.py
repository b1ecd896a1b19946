"""The detector: images to scene tokens, map queries through the frozen LLM, queries to polylines."""

# B batch, V cameras, I instances, P points, N scene tokens a camera, R x C ground tokens, S = V*N + R*C of both,
# L text tokens, D LLM width

import logging
import math

import torch
from torch import Tensor, nn

from models.alarms import SPREADS
from models.attention_mask import map_attention_mask, map_position_ids
from models.blip2_checkpoint import load_blip2
from models.config import ModelConfig
from models.decoder import VectorDecoder
from models.geometry_embedding import GeometryEmbedding
from models.ground_grid import GroundGrid, ImageFeatures
from models.ground_tokens import GroundTokens, PlaceEmbedding
from models.llm.frozen import FrozenLLM, build_llm
from models.map_queries import MapQueries
from models.qformer import CameraQFormer, SceneProjection, build_qformer
from models.segmentation import SegmentationHeads
from models.vision import VisionTower, build_vision_tower
from utils.frame import CAMERAS


class MapDetector(nn.Module):
    """The whole network; `llm` may be None, then scene tokens and map queries go straight to the decoder.

    Other parts are None where ModelConfig.without names them.
    """

    def __init__(self, vision: VisionTower, geometry: GeometryEmbedding | None, qformer: CameraQFormer | None,
                 projection: SceneProjection | None, place: PlaceEmbedding, map_queries: MapQueries,
                 llm: FrozenLLM | None, image_features: ImageFeatures, ground_grid: GroundGrid,
                 ground_tokens: GroundTokens | None, decoder: VectorDecoder, segmentation: SegmentationHeads,
                 image_size: tuple[int, int], token_grid: tuple[int, int], causal_prefix: bool):
        super().__init__()
        self.vision = vision
        self.geometry = geometry
        self.qformer = qformer
        self.projection = projection
        self.place = place
        self.map_queries = map_queries
        self.llm = llm
        self.image_features = image_features
        self.ground_grid = ground_grid
        self.ground_tokens = ground_tokens
        self.decoder = decoder
        self.segmentation = segmentation
        self.image_size = tuple(image_size)
        self.token_grid = tuple(token_grid)
        self.causal_prefix = causal_prefix

    def forward(self, batch: dict) -> dict:
        """A collated batch (images uint8 [B, V, 3, H, W], lidar2img [B, V, 4, 4], ground_z [B], camera_ids [B, V]
        and, if there is one, context: B texts that follow the prompt) to pred_logits [B, I, C], pred_pts [B, I, P, 2]
        in [0, 1], aux_outputs (the same of the earlier heads, the first straight after the LLM), the collapse alarms
        of SPREADS (spread across the batch of what each is of) and, in training, the logits of SegmentationHeads and
        noisy_outputs, what the decoder's layers make of the targets' noisy_pts in the order of stack_noisy (none
        without them).
        """
        if tuple(batch["images"].shape[-2:]) != self.image_size:
            raise ValueError(f"images are {tuple(batch['images'].shape[-2:])}, the model takes {self.image_size}")
        lidar2img, ground_z = batch["lidar2img"], batch["ground_z"]
        pixels = self.vision.normalize(batch["images"])
        tokens = self.vision(pixels)  # [B, V, 1+h*w, C]
        patches = tokens[:, :, 1:]  # [B, V, h*w, C]
        if self.geometry is not None:
            geometry = self.geometry(lidar2img, ground_z, self.token_grid, self.image_size)
            patches = patches + geometry.to(tokens.dtype)
        features = self.image_features(pixels, patches, self.token_grid)  # [B, V, F, H, W/4] and [B, V, F, h, w]
        ground = self.ground_grid(*features, lidar2img, ground_z, self.image_size)  # [B, F, Y, X]
        scene = []
        if self.qformer is not None:
            scene_tokens = self.qformer(torch.cat([tokens[:, :, :1], patches], dim=2))  # [B, V, N, E]
            scene.append(self.projection(scene_tokens, batch["camera_ids"]))
        if self.ground_tokens is not None:
            scene.append(self.ground_tokens(ground, self.place))
        scene = torch.cat(scene, dim=1)  # [B, V*N + R*C, D]
        scene_states, query_states = self.read_scene(scene, batch.get("context"))
        instance_states, point_states = self.map_queries.split(query_states)
        noisy = stack_noisy(batch["targets"]) if self.training and "noisy_pts" in batch["targets"][0] else ()
        (*aux_outputs, outputs), noisy_outputs = self.decoder(
            instance_states, point_states, scene_states, ground, *noisy
        )
        spreads = {name: spread_across_batch(states) for name, states in self.watched(scene, query_states).items()}
        outputs = {**outputs, "aux_outputs": aux_outputs, **spreads}
        if self.training:
            outputs["noisy_outputs"] = noisy_outputs
            scene_tokens = scene[:, : scene.shape[1] - self.num_ground_tokens]
            outputs |= self.segmentation(patches, scene_tokens, ground)
        return outputs

    @property
    def num_ground_tokens(self) -> int:
        """The last of the tokens that read_scene is given; the others are the Q-Former's."""
        return math.prod(self.ground_tokens.shape) if self.ground_tokens is not None else 0

    def watched(self, scene: Tensor, query_states: Tensor) -> dict[str, Tensor]:
        """What SPREADS are of, each [B, ..., D]: the Q-Former's tokens and the ground tokens, as they go into the LLM,
        and the map queries as they leave it. What the network goes without is empty."""
        num_scene = scene.shape[1] - self.num_ground_tokens
        return dict(zip(SPREADS, (scene[:, :num_scene], scene[:, num_scene:], query_states), strict=True))

    def read_scene(self, scene: Tensor, contexts: list[str] | None = None) -> tuple[Tensor, Tensor]:
        """Scene tokens [B, S, D] to what the LLM makes of them, [B, S, D], and of the map queries, [B, I*(1+P), D].

        contexts: for each sample, the text that follows the prompt.
        """
        batch, num_scene = scene.shape[:2]
        queries = self.map_queries(batch, self.decoder.references, self.place)
        if self.llm is None:
            return scene, queries.to(scene.dtype)
        text, text_valid = self.llm.prompt(contexts or [""] * batch)
        shape = (num_scene, self.map_queries.num_instances, self.map_queries.num_points)
        mask = map_attention_mask(text_valid, *shape, self.causal_prefix)
        position_ids = map_position_ids(text_valid, *shape)
        embeddings = torch.cat([text, scene.to(text.dtype), queries.to(text.dtype)], dim=1)  # [B, T, D]
        # The LLM computes in its own precision, everything after it in that of the scene tokens.
        states = self.llm(embeddings, mask, position_ids).to(scene.dtype)
        num_text = text.shape[1]
        return states[:, num_text : num_text + num_scene], states[:, num_text + num_scene :]


def stack_noisy(targets: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """The targets' noisy_pts [K, G, P, 2], one line after the other, and who may look at whom.

    Each sample is filled up to the largest G (at least 1) with lines in the middle of the range: [B, K*G, P, 2]. Nobody
    but itself sees such a line: mask [B, K*G, K*G], True = the row's line may look at the column's. Unlike DN-DETR's
    groups, the copies of a line see each other.
    """
    counts = [target["noisy_pts"].shape[1] for target in targets]
    copies, _, points, _ = targets[0]["noisy_pts"].shape
    stacked = targets[0]["noisy_pts"].new_full((len(targets), copies, max(1, *counts), points, 2), 0.5)
    real = stacked.new_zeros(stacked.shape[:3], dtype=torch.bool)
    for row, is_real, target, count in zip(stacked, real, targets, counts, strict=True):
        row[:, :count] = target["noisy_pts"]
        is_real[:, :count] = True
    real = real.flatten(1)  # [B, K*G]
    itself = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    return stacked.flatten(1, 2), real[:, None, :] | itself


def spread_across_batch(states: Tensor) -> Tensor:
    """Standard deviation across the samples [B, ...], relative to the overall scale; near 0 means collapse.

    NaN for a single sample, and for states that are empty.
    """
    states = states.detach().float()
    if len(states) < 2 or not states.numel():
        return states.new_tensor(float("nan"))
    # Of two samples torch's std over the first axis takes forty times as long.
    deviations = ((states - states.mean(0)).square().sum(0) / (len(states) - 1)).sqrt()
    return deviations.mean() / states.std().clamp(min=1e-12)


def build_detector(
    config: ModelConfig, device: torch.device | str | None = None, frozen_dtype: torch.dtype = torch.float32,
    llm_device: torch.device | str | None = None,
) -> MapDetector:
    """The network that config describes on the device (None: torch's default).

    llm_device: where the LLM goes (None: with the rest); the CPU, if shard_llm is to move it on.

    Trainable parts are float32 and freshly initialised from torch's random state, except where
    config.qformer_pretrained names BLIP-2's weights; frozen parts are in frozen_dtype. On the meta device it has shapes
    only. Raises UserError when pretrained weights cannot be loaded whole.
    """
    device = torch.device(device) if device is not None else torch.get_default_device()
    llm_device = torch.device(llm_device) if llm_device is not None else device
    # Random weights are drawn on the CPU, so that a seed means the same network on every device.
    with torch.device("meta" if device.type == "meta" else "cpu"):
        model = _assemble(config, build_llm(config, llm_device, frozen_dtype), frozen_dtype)
    if config.qformer_pretrained != "none" and device.type != "meta":
        report = load_blip2(model.vision, model.qformer, config.qformer_pretrained)
        logging.getLogger(__name__).info("%s", report)
    for part in model.children():
        part.to(llm_device if part is model.llm else device)
    return model


def _assemble(config: ModelConfig, llm: FrozenLLM | None, frozen_dtype: torch.dtype) -> MapDetector:
    llm_dim = llm.hidden_size if llm else config.random_llm.hidden_size
    token_scale = llm.token_scale if llm else llm_dim**-0.5
    vision, qformer, decoder, without = config.vision, config.qformer, config.decoder, config.without
    num_offsets = decoder.num_offsets if "decoder_sampling" not in without else 0
    image_features = ImageFeatures(vision.hidden_size, decoder.feature_dim, decoder.centred_stem)
    ground_grid = GroundGrid(image_features.channels, decoder.feature_dim, decoder.cell_m, decoder.cell_samples,
                             config.pc_range)
    return MapDetector(
        vision=build_vision_tower(config, frozen_dtype),
        geometry=GeometryEmbedding(vision.hidden_size, config.pc_range) if "geometry" not in without else None,
        qformer=build_qformer(config) if "qformer" not in without else None,
        projection=(
            SceneProjection(qformer.hidden_size, llm_dim, len(CAMERAS), token_scale)
            if "qformer" not in without else None
        ),
        place=PlaceEmbedding(llm_dim, config.pc_range, token_scale),
        map_queries=MapQueries(config.num_instances, config.num_points, llm_dim, token_scale),
        llm=llm,
        image_features=image_features,
        ground_grid=ground_grid,
        ground_tokens=(
            GroundTokens(decoder.feature_dim, llm_dim, ground_grid.shape, config.cells_per_token, token_scale)
            if "ground_tokens" not in without else None
        ),
        decoder=VectorDecoder(
            llm_dim, decoder.dim, decoder.num_layers, decoder.num_heads, decoder.mlp_size, decoder.dropout,
            decoder.feature_dim, num_offsets, decoder.reach_m, config.num_instances, config.num_points,
            config.num_classes, config.pc_range,
        ),
        segmentation=SegmentationHeads(
            vision.hidden_size, llm_dim, decoder.feature_dim, decoder.dim, decoder.num_heads, config.token_grid,
            qformer.num_query_tokens if "qformer" not in without else 0, config.num_classes,
        ),
        image_size=config.image_size,
        token_grid=config.token_grid,
        causal_prefix="causal_prefix" not in without,
    )
