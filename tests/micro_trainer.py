"""Trainers of the micro model, in this process or one a rank, for tests of the training engine."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data.gt_cache import GTCache
from models.config import ModelConfig
from tests.micro import micro_config
from train_map_detection import build_loader
from training.flags import parse_args
from training.interruption import SignalWatch
from training.trainer import Trainer
from utils.checkpoint import load_checkpoint
from utils.distributed import Ranks
from utils.run_log import RunLog, drop_later_records

ALONE = Ranks()


def make_trainer(folder: Path, world: Path, caches: dict[str, Path], *flags: str, dropout: float = 0.1,
                 ranks: Ranks = ALONE, config: ModelConfig | None = None, resume: Path | None = None) -> Trainer:
    """A trainer of the micro model on the tiny world: 8 training samples, 4 for validation.

    It writes into the folder and stands at the beginning, or where the checkpoint `resume` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    args = parse_args("", ["--preset", "tiny", "--dataroot", str(world), "--num-workers", "0", "--batch-size", "4",
                           "--epochs", "2", "--warmup-steps", "2", "--lr-decoder", "1e-3", "--log-interval", "1",
                           "--mirror", "0.5", "--precision", "fp32", *flags])
    config = config or micro_config(decoder=replace(micro_config().decoder, dropout=dropout))
    opened = {split: GTCache.open(path) for split, path in caches.items()}
    loaders = [build_loader(args, config, opened[split], split == "train", ranks) for split in ("train", "val")]
    trainer = Trainer(args, config, *loaders, ranks, SignalWatch())
    checkpoint = load_checkpoint(resume) if resume else {"num_records": 0}
    if resume:
        trainer.restore(checkpoint, resume)
    recorded = drop_later_records(folder, checkpoint["num_records"]) if ranks.is_main else 0
    trainer.start(folder, RunLog(folder if ranks.is_main else None, recorded))
    return trainer


def on_ranks(count: int, work: Callable[..., None], *given: object, timeout_s: float = 60.0) -> None:
    """Run work(ranks, *given), a function of a module, on that many gloo ranks; their errors are raised here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (count, f"{folder}/store", work, given, timeout_s), nprocs=count)


def _rank(rank: int, count: int, store: str, work: Callable[..., None], given: tuple, timeout_s: float) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=count, timeout=timeout)
    work(Ranks(rank, count), *given)
    dist.destroy_process_group()
