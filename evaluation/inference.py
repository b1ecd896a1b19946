"""Run a detector over a split and score it."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.dataset import MapDetectionDataset, collate
from data.gt_cache import GTCache
from data.records import SampleRecord
from data.transforms import AugmentConfig
from evaluation.postprocess import vectors_by_token
from evaluation.spreads import spreads_of, watched_spreads
from evaluation.vectors import Vectors
from models.config import ModelConfig
from models.detector import MapDetector, build_detector
from utils.checkpoint import load_checkpoint, load_trainable
from utils.device import autocast_of, default_device
from utils.errors import UserError
from utils.frame import CLASSES
from utils.run_log import progress_bar


def config_of(checkpoint: dict, path: str | Path) -> ModelConfig:
    """The model settings of a checkpoint. Raises UserError when this code does not know them or their classes."""
    try:
        config = ModelConfig.from_dict(checkpoint["model_config"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: model settings of another version ({error}); use that version of the code") from error
    if config.classes != CLASSES:
        raise UserError(
            f"{path}: trained for the classes {', '.join(config.classes)}, expected {', '.join(CLASSES)}; "
            "use the version of the code that trained it"
        )
    return config


class LoadedDetector(NamedTuple):
    """A detector in eval mode, its settings, and what autocast should compute in (None: full precision)."""

    model: MapDetector
    config: ModelConfig
    dtype: torch.dtype | None


def load_detector(
    path: str | Path,
    device: torch.device,
    llm_path: str | None = None,
    qformer_pretrained: str | None = None,
    cache: GTCache | None = None,
) -> LoadedDetector:
    """The detector of a checkpoint on the device; for the paths see evaluation/flags.py.

    On a GPU it has the precision that it was trained and validated in, elsewhere full precision. Raises UserError when
    the file is not a checkpoint or does not fit, also to the range of the cache that it is for: that is said before a
    large model is loaded.
    """
    checkpoint = load_checkpoint(path)
    config = config_of(checkpoint, path)
    if cache is not None:
        cache.require(pc_range=config.pc_range)
    places = {"llm_path": llm_path, "qformer_pretrained": qformer_pretrained}
    try:
        config = replace(config, **{name: place for name, place in places.items() if place})
    except ValueError as error:
        raise UserError(f"{path}: was not trained so ({error})") from error
    dtype = autocast_of(checkpoint["args"]["precision"]) if device.type == "cuda" else None
    model = build_detector(config, device, dtype or torch.float32)
    load_trainable(model, checkpoint, path, averaged=True)
    return LoadedDetector(model.eval(), config, dtype)


def build_dataset(
    config: ModelConfig,
    samples: GTCache | Sequence[SampleRecord],
    dataroot: str | Path,
    augment: AugmentConfig | None = None,
    seed: int = 0,
) -> MapDetectionDataset:
    """The samples as a model of this config takes them."""
    return MapDetectionDataset(
        samples, dataroot, config.image_size, config.crop_top, config.num_points, augment, seed, config.pc_range,
        config.prompt_context,
    )  # fmt: skip


def build_loader(
    config: ModelConfig,
    samples: GTCache | Sequence[SampleRecord],
    batches: Sequence[Sequence[int]],
    dataroot: str | Path,
    num_workers: int = 0,
) -> DataLoader:
    """Batches of positions in `samples`, collated, as a model of this config takes them."""
    dataset = build_dataset(config, samples, dataroot)
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=collate)


def predict_samples(
    checkpoint: str | Path,
    samples: GTCache | Sequence[SampleRecord],
    batches: Sequence[Sequence[int]],
    dataroot: str | Path,
    num_workers: int = 0,
    llm_path: str | None = None,
    qformer_pretrained: str | None = None,
    description: str = "predict",
) -> tuple[dict[str, Vectors], ModelConfig, float]:
    """What a checkpoint's detector predicts for batches of positions in `samples`, its settings, and the seconds.

    Vectors are scored, by sample token, in metres; num_workers processes decode images; description is what the
    progress bar says. Raises UserError when checkpoint and cache do not fit.
    """
    device = default_device()
    cache = samples if isinstance(samples, GTCache) else None
    model, config, dtype = load_detector(checkpoint, device, llm_path, qformer_pretrained, cache)
    loader = build_loader(config, samples, batches, dataroot, num_workers)
    predictions, measured = predict(model, loader, device, dtype, config.pc_range, description)
    return predictions, config, measured["seconds"]


def move_batch(batch: dict, device: torch.device) -> dict:
    """The tensors of a collated batch on a device; everything else as it is."""

    def move(value):
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        return value

    moved = {key: move(value) for key, value in batch.items()}
    moved["targets"] = [move(target) for target in batch["targets"]]
    return moved


@torch.no_grad()
def outputs_by_batch(
    model: nn.Module, loader: Iterable[dict], device: torch.device, autocast_dtype: torch.dtype | None
) -> Iterator[tuple[dict, dict]]:
    """Every batch of the loader, moved to the device, and the model's outputs for it; None means full precision."""
    for batch in loader:
        moved = move_batch(batch, device)
        with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            outputs = model(moved)
        yield moved, outputs


def predict(
    model: MapDetector,
    loader: Iterable[dict],
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    pc_range: tuple[float, ...],
    description: str = "validate",
) -> tuple[dict[str, Vectors], dict[str, float]]:
    """Scored vectors of every sample by token, and measurements: seconds and the collapse alarms over all samples.

    autocast_dtype None means full precision; description is what the progress bar says. The model is left in the
    mode it was in.
    """
    was_training = model.training
    model.eval()
    predictions: dict[str, Vectors] = {}
    start = time.monotonic()
    try:
        with watched_spreads(model) as running, progress_bar(len(loader), description) as bar:
            for batch, outputs in outputs_by_batch(model, loader, device, autocast_dtype):
                predictions.update(vectors_by_token(batch, outputs, pc_range))
                bar.update()
    finally:
        model.train(was_training)
    return predictions, {"seconds": time.monotonic() - start, **spreads_of(running)}
