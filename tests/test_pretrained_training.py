"""The whole path of the real model at toy size: BLIP-2 and LLM checkpoints in, training, evaluation elsewhere."""

import json
import sys

import pytest
import torch
from transformers import Blip2ForConditionalGeneration

import models.flags
import train_map_detection
from models.config import QFormerConfig, VisionConfig
from tests.made_blip2 import random_blip2
from tests.made_llm import made_llm, save_llm
from tests.micro import micro_config
from tools import evaluate
from utils.errors import UserError


@pytest.fixture
def frozen_parts(tmp_path, monkeypatch):
    """Folders of a BLIP-2 and a LLaMA checkpoint, and a `base` preset small enough for them."""
    random_blip2(Blip2ForConditionalGeneration).save_pretrained(tmp_path / "blip2", max_shard_size="60KB")
    save_llm(tmp_path / "llm", made_llm("llama"))
    preset = micro_config(image_size=(28, 56), vision=VisionConfig(), qformer=QFormerConfig(),
                          qformer_pretrained="blip2", llm_path="lmsys/vicuna-7b-v1.5")
    monkeypatch.setattr(models.flags, "PRESETS", {"base": preset})
    return tmp_path


def run(monkeypatch, main, *flags):
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, flags)])
    main()


def test_training_and_evaluating_with_pretrained_parts(frozen_parts, synthetic_world, caches, monkeypatch, capsys):
    out = frozen_parts / "run"
    common = ["--dataroot", synthetic_world, "--num-workers", 0]
    run(
        monkeypatch, train_map_detection.main, *common, "--preset", "base", "--epochs", 1, "--log-interval", 1,
        "--qformer-pretrained", frozen_parts / "blip2", "--llm-path", frozen_parts / "llm", "--lora-rank", 2,
        "--warmup-steps", 1, "--prompt", "map car", "--prompt-context", "--gradient-checkpointing", "--output-dir", out,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "BLIP-2 from " in printed and "query tokens 1 tensors" in printed
    table = {line.split()[0]: line for line in printed.splitlines() if line.split()[1:2] and line[0].isalpha()}
    assert " frozen " in table["vision"] and "1e-05" in table["qformer"] and "partly trained" in table["llm"]
    assert " l=" in printed, "LoRA has its own learning rate"
    blip2 = random_blip2(Blip2ForConditionalGeneration)
    checkpoint = torch.load(out / "best_model.pth", weights_only=True)
    trained = checkpoint["model_state_dict"]["qformer.query_tokens"]
    start = blip2.query_tokens
    assert trained.shape == start.shape and 0 < (trained - start).abs().max() < 1e-3, "it started from BLIP-2's"
    assert not any(name.startswith("vision.") for name in checkpoint["model_state_dict"])
    assert sum("lora" in name for name in checkpoint["model_state_dict"]) == 2 * 2 * 7

    validated = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]["result"]
    for part in ("blip2", "llm"):  # another machine has them elsewhere
        (frozen_parts / part).rename(frozen_parts / f"{part}-moved")
    flags = ["--checkpoint", out / "best_model.pth", "--gt-cache", caches["val"], *common]
    moved = ["--qformer-pretrained", frozen_parts / "blip2-moved", "--llm-path", frozen_parts / "llm-moved"]
    run(monkeypatch, evaluate.main, *flags, *moved, "--json", out / "eval.json")
    assert json.loads((out / "eval.json").read_text())["details"] == validated["details"]
    with pytest.raises(UserError, match="no such file or folder"):
        run(monkeypatch, evaluate.main, *flags)


def test_other_frozen_weights_are_refused_by_name(frozen_parts, synthetic_world, caches, monkeypatch):
    out = frozen_parts / "run"
    common = ["--dataroot", synthetic_world, "--num-workers", 0]
    parts = ["--qformer-pretrained", frozen_parts / "blip2", "--llm-path", frozen_parts / "llm"]
    run(monkeypatch, train_map_detection.main, *common, "--preset", "base", "--epochs", 1, "--prompt", "map",
        "--warmup-steps", 1, "--output-dir", out, *parts)
    other = made_llm("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    save_llm(frozen_parts / "other", other)
    flags = ["--checkpoint", out / "best_model.pth", "--gt-cache", caches["val"], *common]
    with pytest.raises(UserError, match="other frozen weights, 1 tensors differ .*llm.model.layers.1.mlp.up_proj"):
        run(monkeypatch, evaluate.main, *flags, "--llm-path", frozen_parts / "other")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--qformer-pretrained", "none"], "--qformer-pretrained none: the frozen vision tower"),
        (["--qformer-pretrained", "nowhere/at-all"], "nowhere/at-all"),
        (["--llm-quantization", "nf4", "--llm-path", "none"], "llm_path=none: leaves nothing"),
        (["--unfreeze-llm", "--llm-path", "random"], "--unfreeze-llm: training all .* GB"),
        (["--lora-rank", "-1"], "lora_rank=-1: must be 0"),
        (["--image-size", "336", "600"], r"image_size=\(336, 600\): both sides must be multiples of the patch size 14"),
    ],
)
def test_model_flags_that_cannot_be_meant_are_named(frozen_parts, synthetic_world, caches, monkeypatch, flags, message):
    # The last --qformer-pretrained counts.
    common = ["--dataroot", synthetic_world, "--preset", "base", "--qformer-pretrained", frozen_parts / "blip2"]
    with pytest.raises(UserError, match=message) as caught:
        run(monkeypatch, train_map_detection.main, *common, "--output-dir", frozen_parts / "run", *flags)
    assert "\n" not in str(caught.value) and not (frozen_parts / "run").exists()
