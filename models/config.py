"""Model settings and the presets. Only `build_*` functions read them; modules take plain arguments."""

from dataclasses import asdict, dataclass, replace

from utils.frame import CLASSES, PC_RANGES

QUANTIZATIONS = ("none", "int8", "nf4")
ATTENTIONS = ("sdpa", "flex")  # PyTorch's fused attention with a mask, or its compiled one that skips empty blocks
# What `without` may leave out, so that its worth can be measured: the geometry embedding of the patches, the Q-Former
# with its tokens, the ground tokens, the decoder's look at the image features on the ground, and the causal order of
# the prefix (text and scene tokens then all see each other).
PARTS = ("geometry", "qformer", "ground_tokens", "decoder_sampling", "causal_prefix")


def _require(condition: bool, name: str, value: object, fix: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value}: {fix}")


@dataclass(frozen=True)
class VisionConfig:
    """BLIP-2's vision transformer (EVA ViT)."""

    hidden_size: int = 1408
    num_layers: int = 39
    num_heads: int = 16
    mlp_size: int = 6144
    patch_size: int = 14
    position_grid: int = 16  # the position embedding is learned on position_grid^2 patches and interpolated
    trainable: bool = False  # the pretrained tower stays frozen; the toy tower has to learn

    def __post_init__(self):
        _require(self.hidden_size % self.num_heads == 0, "vision.num_heads", self.num_heads,
                 f"must divide hidden_size={self.hidden_size}")


@dataclass(frozen=True)
class QFormerConfig:
    """BLIP-2's Q-Former, run once a camera."""

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_size: int = 3072
    cross_attention_frequency: int = 2  # every n-th layer looks at the image
    num_query_tokens: int = 32  # scene tokens a camera
    dropout: float = 0.1  # BLIP-2's own

    def __post_init__(self):
        _require(self.hidden_size % self.num_heads == 0, "qformer.num_heads", self.num_heads,
                 f"must divide hidden_size={self.hidden_size}")


@dataclass(frozen=True)
class RandomLLMConfig:
    """Shape of the LLaMA that `llm_path = random` builds; a loaded model brings its own."""

    hidden_size: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    mlp_size: int = 11008
    vocab_size: int = 32000
    seed: int = 0  # of the frozen random weights


@dataclass(frozen=True)
class DecoderConfig:
    """Vector decoder and the image features on the ground that it looks at."""

    dim: int = 256
    num_layers: int = 6
    num_heads: int = 8
    mlp_size: int = 512
    dropout: float = 0.0
    feature_dim: int = 32  # channels of the ground features
    cell_m: float = 0.5  # size of a ground cell in metres
    # The presets have 2 and True. Checkpoints from before there was a choice name neither and have what stands here.
    cell_samples: int = 1  # places along either side of a cell that are looked up in the images
    centred_stem: bool = False  # the stem's kernels are of even width, so its features lie amid the pixels they are of
    num_offsets: int = 16  # places a point looks at in each layer
    reach_m: float = 8.0  # how far away the first layer's furthest place is; each next layer half of it, at least 1 m

    def __post_init__(self):
        _require(self.dim % self.num_heads == 0, "decoder.num_heads", self.num_heads, f"must divide dim={self.dim}")
        _require(self.cell_m > 0, "decoder.cell_m", self.cell_m, "must be positive")
        _require(self.cell_samples > 0, "decoder.cell_samples", self.cell_samples, "must be positive")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes the network."""

    image_size: tuple[int, int] = (336, 336)  # H, W of the network's input
    crop_top: float = 0.0  # share of the image height cut from the top before resizing
    num_instances: int = 50
    num_points: int = 20
    cells_per_token: int = 10  # the LLM reads squares of so many by so many ground cells (decoder.cell_m) as tokens
    classes: tuple[str, ...] = CLASSES
    pc_range: tuple[float, ...] = PC_RANGES["60x30"]
    qformer_pretrained: str = "none"  # start of tower and Q-Former: blip2, a folder, file or hub id of BLIP-2 | none
    llm_path: str = "lmsys/vicuna-7b-v1.5"  # folder, hub id or .gguf file of a decoder-only model | random | none
    llm_quantization: str = "none"  # none | int8 | nf4: how the frozen linear layers of the LLM are stored
    llm_layers: int = 0  # read the states after so many layers of the LLM, through its last norm; 0 = after all
    llm_attention: str = "sdpa"  # sdpa | flex: how the LLM attends; flex on a CUDA device, elsewhere it is sdpa too
    llm_checkpointing: bool = False  # keep each LLM layer's input only and compute the layer again in backward
    lora_rank: int = 0  # of the trained low-rank addition to each linear layer of the LLM; 0 = none
    lora_alpha: float = 16.0  # the addition is scaled by lora_alpha / lora_rank
    unfreeze_llm: bool = False  # train every weight of the LLM, in float32
    prompt: str = (
        "Six cameras of a car see, in this order: front, front right, front left, back, back left, back right. "
        "Draw the vector map around the car: lane dividers, pedestrian crossings and road boundaries."
    )
    prompt_context: bool = False  # append each sample's city, driving side, day or night and rain to the prompt
    without: tuple[str, ...] = ()  # of PARTS, for ablations
    vision: VisionConfig = VisionConfig()
    qformer: QFormerConfig = QFormerConfig()
    random_llm: RandomLLMConfig = RandomLLMConfig()
    decoder: DecoderConfig = DecoderConfig()

    def __post_init__(self):
        for side in self.image_size:
            _require(side > 0 and side % self.vision.patch_size == 0, "image_size", self.image_size,
                     f"both sides must be multiples of the patch size {self.vision.patch_size}")
        _require(self.image_size[1] % 4 == 0 or not self.decoder.centred_stem, "image_size", self.image_size,
                 "the width must be a multiple of 4 too, of which the stem makes one column each")
        _require(0.0 <= self.crop_top < 1.0, "crop_top", self.crop_top, "must be in [0, 1)")
        _require(self.num_instances > 0, "num_instances", self.num_instances, "must be positive")
        _require(self.num_points >= 4, "num_points", self.num_points, "must be at least 4, a ring needs 3 + 1")
        _require(self.cells_per_token > 0, "cells_per_token", self.cells_per_token, "must be positive")
        _require(len(self.pc_range) == 6, "pc_range", self.pc_range, "must be x0 y0 z0 x1 y1 z1")
        for part in self.without:
            _require(part in PARTS, "without", part, f"must be of {', '.join(PARTS)}")
        _require(not {"qformer", "ground_tokens"} <= set(self.without), "without", ",".join(self.without),
                 "leaves the LLM no scene to read; keep qformer or ground_tokens")
        _require(not ("qformer" in self.without and self.qformer_pretrained != "none"), "without", "qformer",
                 f"cannot be left out where qformer_pretrained={self.qformer_pretrained} loads it with its tower")
        _require(self.llm_quantization in QUANTIZATIONS, "llm_quantization", self.llm_quantization,
                 f"must be one of {', '.join(QUANTIZATIONS)}")
        _require(self.llm_attention in ATTENTIONS, "llm_attention", self.llm_attention,
                 f"must be one of {', '.join(ATTENTIONS)}")
        _require(self.llm_layers >= 0, "llm_layers", self.llm_layers, "must be 0 (all) or positive")
        _require(self.lora_rank >= 0, "lora_rank", self.lora_rank, "must be 0 (none) or positive")
        _require(0 < self.lora_alpha < float("inf"), "lora_alpha", self.lora_alpha, "must be positive")
        changes_llm = (self.lora_rank > 0 or self.unfreeze_llm or self.llm_quantization != "none"
                       or self.llm_layers > 0 or self.llm_attention != "sdpa")  # fmt: skip
        of_prefix = self.prompt_context or "causal_prefix" in self.without
        _require(not (self.llm_path == "none" and of_prefix), "llm_path", self.llm_path,
                 "leaves no prefix for prompt_context or without=causal_prefix to change")
        _require(not (self.llm_path == "none" and changes_llm), "llm_path", self.llm_path,
                 "leaves nothing for lora_rank, unfreeze_llm, llm_quantization, llm_layers or llm_attention to act on")
        _require(not (self.unfreeze_llm and self.llm_attention == "flex"), "llm_attention", self.llm_attention,
                 "takes weights in one precision, unfreeze_llm keeps them in float32 under autocast; take sdpa")
        _require(not (self.unfreeze_llm and (self.lora_rank or self.llm_quantization != "none")), "unfreeze_llm",
                 self.unfreeze_llm, "goes with lora_rank=0 and llm_quantization=none, which are for frozen weights")

    @property
    def num_classes(self) -> int:
        """How many classes a head tells apart."""
        return len(self.classes)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of vision tokens."""
        return self.image_size[0] // self.vision.patch_size, self.image_size[1] // self.vision.patch_size

    def to_dict(self) -> dict:
        """Plain types only, for checkpoints and config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """Inverse of to_dict, also after a trip through JSON."""
        parts = {"vision": VisionConfig, "qformer": QFormerConfig, "random_llm": RandomLLMConfig,
                 "decoder": DecoderConfig}
        values = {name: parts[name](**value) if name in parts else value for name, value in values.items()}
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


_TINY = ModelConfig(
    image_size=(80, 256),
    crop_top=0.5,  # what is left begins a little above the horizon
    num_instances=24,
    num_points=10,
    cells_per_token=5,
    llm_path="random",
    vision=VisionConfig(hidden_size=128, num_layers=2, num_heads=4, mlp_size=256, patch_size=16, position_grid=8,
                        trainable=True),
    qformer=QFormerConfig(hidden_size=128, num_layers=2, num_heads=4, mlp_size=256, num_query_tokens=16,
                          dropout=0.0),
    random_llm=RandomLLMConfig(hidden_size=128, num_layers=2, num_heads=4, mlp_size=352, vocab_size=256),
    decoder=DecoderConfig(dim=128, num_layers=3, num_heads=4, mlp_size=256, cell_m=0.75, cell_samples=2,
                          centred_stem=True),
)

PRESETS = {
    "tiny": _TINY,
    # The toy tower in front of a real small language model, by default SmolLM2-135M from the hub.
    "small": replace(_TINY, llm_path="HuggingFaceTB/SmolLM2-135M"),
    "base": ModelConfig(qformer_pretrained="blip2", decoder=DecoderConfig(cell_samples=2, centred_stem=True)),
}
