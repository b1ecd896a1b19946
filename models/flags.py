"""Command-line flags that shape the network, and the settings they stand for."""

import argparse
from dataclasses import replace

from models.blip2_checkpoint import blip2_config
from models.config import ATTENTIONS, PARTS, PRESETS, QUANTIZATIONS, ModelConfig
from models.llm.frozen import check_unfreezing
from utils.errors import UserError
from utils.frame import PC_RANGES


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that config_from_flags reads, in a group of their own."""
    model = parser.add_argument_group("model")
    model.add_argument("--preset", default="base", choices=PRESETS, help="sizes: models/config.py")
    model.add_argument("--pc-range", default="60x30", choices=PC_RANGES, help="length x width of the map in metres")
    model.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"),
                       help="of the network's input, multiples of the patch size, 14 in BLIP-2; the width of 4 too "
                       "(default: the preset's)")
    model.add_argument("--qformer-pretrained", help="start of vision tower and Q-Former: blip2 (the hub's "
                       "Salesforce/blip2-opt-2.7b), a folder, file or hub id of a BLIP-2 checkpoint, or none "
                       "(default: what the preset says)")
    model.add_argument("--llm-path", help="folder, .gguf file or hub id of a decoder-only model | random | none "
                       "(default: what the preset says)")
    model.add_argument("--llm-quantization", default="none", choices=QUANTIZATIONS,
                       help="store the LLM's linear layers in 8 or 4 bits; needs bitsandbytes")
    model.add_argument("--llm-layers", type=int, default=0,
                       help="read the states after so many layers of the LLM and leave out the others; 0: all")
    model.add_argument("--llm-attention", default="sdpa", choices=ATTENTIONS,
                       help="flex: blocks that nobody may attend to are skipped; on a GPU, elsewhere sdpa is used")
    model.add_argument("--gradient-checkpointing", action="store_true",
                       help="keep each LLM layer's input only and compute the layer again: less memory, more time")
    model.add_argument("--prompt", help="text in front of the scene (default: names the six cameras)")
    model.add_argument("--prompt-context", action="store_true",
                       help="append each sample's city, driving side, day or night, and rain")
    model.add_argument("--without", default="", metavar="PART,...",
                       help=f"leave parts out, to measure what they are worth: {', '.join(PARTS)}; qformer not where "
                       "it is pretrained")
    model.add_argument("--lora-rank", type=int, default=0, help="train low-rank additions to the LLM; 0: none")
    model.add_argument("--lora-alpha", type=float, default=16.0, help="scales these additions by alpha / rank")
    model.add_argument("--unfreeze-llm", action="store_true", help="train the whole LLM, in fp32")
    model.add_argument("--confirm-unfreeze-llm", action="store_true",
                       help="needed with --unfreeze-llm: a 7B takes over 100 GB")


def config_from_flags(args: argparse.Namespace) -> ModelConfig:
    """The preset with what the flags change; tower and Q-Former take the shape of the checkpoint they start from.

    Raises UserError for settings that do not go together, and for a checkpoint whose settings cannot be read.
    """
    preset = PRESETS[args.preset]
    given = {name: getattr(args, name) for name in ("qformer_pretrained", "llm_path", "prompt")}
    changes = {name: value for name, value in given.items() if value is not None}
    changes["without"] = tuple(part for part in args.without.split(",") if part)
    if args.image_size:
        changes["image_size"] = tuple(args.image_size)
    source = changes.get("qformer_pretrained", preset.qformer_pretrained)
    if source != "none":
        changes["vision"], changes["qformer"] = blip2_config(source)
    elif not preset.vision.trainable:
        raise UserError(f"--qformer-pretrained none: the frozen vision tower of --preset {args.preset} would stay "
                        "random; give BLIP-2's weights, or take --preset tiny or small")
    try:
        config = replace(preset, **changes, pc_range=PC_RANGES[args.pc_range], lora_rank=args.lora_rank,
                         prompt_context=args.prompt_context,
                         llm_quantization=args.llm_quantization, llm_layers=args.llm_layers, lora_alpha=args.lora_alpha,
                         llm_attention=args.llm_attention,
                         llm_checkpointing=args.gradient_checkpointing, unfreeze_llm=args.unfreeze_llm)
    except ValueError as error:
        raise UserError(f"model settings: {error}") from error
    check_unfreezing(config, args.confirm_unfreeze_llm)
    return config
