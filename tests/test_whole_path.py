"""The whole path on real and on synthetic data: cache, dataset, forward, loss, evaluation, drawing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.dataset import MapDetectionDataset, collate
from data.gt_cache import GTCache
from evaluation.chamfer_ap import evaluate
from evaluation.formats import write_maptr_predictions
from evaluation.inference import predict
from evaluation.vectors import ground_truth_of
from models.config import PRESETS
from models.criterion import MapCriterion
from models.detector import build_detector
from tests.reference import REFERENCE, needs_reference
from utils.frame import CLASSES
from utils.optim import build_optimizer, lr_factor, set_learning_rates

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def run_tool(*command: object) -> str:
    result = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def tiny_dataset(cache: GTCache, dataroot: Path) -> MapDetectionDataset:
    config = PRESETS["tiny"]
    return MapDetectionDataset(cache, dataroot, config.image_size, config.crop_top, config.num_points)


def fit(batch: dict, steps: int, learning_rate: float) -> torch.nn.Module:
    """The tiny preset trained on one batch with the project's optimizer, schedule, criterion and clip."""
    config = PRESETS["tiny"]
    torch.manual_seed(0)
    model = build_detector(config).train()
    criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
    rates = dict.fromkeys(("qformer", "queries", "decoder"), learning_rate)
    optimizer = build_optimizer(model, rates, 0.01)
    for step in range(steps):
        set_learning_rates(optimizer, rates, lr_factor(step, 20, steps))
        loss = criterion.total(criterion(model(batch), batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    return model


@needs_reference
def test_the_real_key_frame_goes_the_whole_way(tmp_path):
    dataroot = REFERENCE / "real_sample"
    cache_path = tmp_path / "real.safetensors"
    run_tool("tools/generate_gt_cache.py", "--split", "train", "--dataroot", dataroot, "--version", "v1.0-mini",
             "--output", cache_path)
    cache = GTCache.open(cache_path)
    batch = collate([tiny_dataset(cache, dataroot)[0]])
    model = fit(batch, steps=60, learning_rate=1e-3)
    predictions, _ = predict(model, [batch], CPU, None, PRESETS["tiny"].pc_range)
    result = evaluate(predictions, ground_truth_of(cache))
    assert result["mAP"] > 0.5, "60 steps on one real frame are enough to learn most of it by heart"
    assert result["ped_crossing"]["AP"] is None, "no crossing lies near it"
    write_maptr_predictions(tmp_path / "predictions.json", predictions, {"use_camera": True})
    run_tool("tools/visualize.py", "--gt-cache", cache_path, "--dataroot", dataroot, "--predictions",
             tmp_path / "predictions.json", "--output", tmp_path / "real.png")
    with Image.open(tmp_path / "real.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 10_000


@pytest.mark.slow
def test_four_samples_are_learnt_by_heart(synthetic_world, tmp_path):
    cache_path = tmp_path / "train.safetensors"
    run_tool("tools/generate_gt_cache.py", "--split", "train", "--dataroot", synthetic_world, "--output", cache_path)
    cache = GTCache.open(cache_path)
    dataset = tiny_dataset(cache, synthetic_world)
    batch = next(iter(DataLoader(dataset, 4, sampler=[0, 2, 4, 6], collate_fn=collate)))
    model = fit(batch, steps=400, learning_rate=1e-3)
    predictions, _ = predict(model, [batch], CPU, None, PRESETS["tiny"].pc_range)
    ground_truth = {token: vectors for token, vectors in ground_truth_of(cache).items() if token in predictions}
    result = evaluate(predictions, ground_truth)
    present = [name for name in CLASSES if result[name]["AP@1.0"] is not None]
    mean_ap = sum(result[name]["AP@1.0"] for name in present) / len(present)
    assert len(present) == 3 and mean_ap > 0.95, result
