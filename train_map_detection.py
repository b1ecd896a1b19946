#!/usr/bin/env python3
"""Train the map detector: flags -> build -> epochs of train and validate -> checkpoints.

scripts/train_stage2.sh and scripts/train_stage2_distributed.sh start it and make missing caches first.

Examples:
  python train_map_detection.py --dataroot data/nuscenes --output-dir outputs/first
  python train_map_detection.py --dataroot data/nuscenes --output-dir outputs/first --resume auto
  python train_map_detection.py --preset tiny --dataroot D --lr-qformer 1e-3 --lr-queries 1e-3 --lr-decoder 1e-3
  torchrun --standalone --nproc-per-node 4 train_map_detection.py --batch-size 1 --dataroot data/nuscenes
"""

import argparse
import contextlib
from datetime import datetime
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from data.dataset import collate
from data.gt_cache import GTCache, default_cache_path, range_name
from data.transforms import AugmentConfig
from evaluation.inference import build_dataset
from models.compilation import check_compiling
from models.config import ModelConfig
from models.flags import config_from_flags
from models.llm.sharding import check_sharding
from training.flags import parse_args
from training.interruption import SignalWatch, end_workers, ignore_signals
from training.resume import check_resumed_settings, find_checkpoint
from training.sampler import GlobalBatches
from training.trainer import Trainer
from utils.checkpoint import load_checkpoint
from utils.device import default_device
from utils.distributed import Ranks, batches_of_rank, join_ranks, leave_ranks
from utils.errors import UserError, run_cli
from utils.files import write_json
from utils.frame import CLASSES, PC_RANGES
from utils.machine import machine, source_commit
from utils.parameter_table import format_parameter_table, parameter_rows
from utils.run_lock import RunLock
from utils.run_log import RunLog, collected_messages, drop_later_records


def open_caches(args: argparse.Namespace) -> tuple[GTCache, GTCache]:
    """The checked caches for training and validation, which share no scene."""
    if not Path(args.dataroot).is_dir():
        raise UserError(f"--dataroot {args.dataroot}: no such folder; give the nuScenes folder")
    caches = []
    for split, path in ((args.train_split, args.gt_cache_train), (args.val_split, args.gt_cache_val)):
        path = path or default_cache_path(args.dataroot, args.version, split, args.pc_range, args.gt_style)
        cache = GTCache.open(path)
        cache.require(split=split, version=args.version, pc_range=PC_RANGES[args.pc_range], gt_style=args.gt_style)
        cache.verify()
        caches.append(cache)
    shared = set(caches[0].meta["scenes"]) & set(caches[1].meta["scenes"])
    if shared:
        raise UserError(
            f"--train-split {args.train_split} --val-split {args.val_split}: share {len(shared)} scenes "
            f"(the first: {min(shared)}), scores on them would mean nothing; take splits that go together"
        )
    return caches[0], caches[1]


def build_loader(
    args: argparse.Namespace, config: ModelConfig, cache: GTCache, train: bool, ranks: Ranks
) -> DataLoader:
    """This rank's batches of a cache: shuffled and augmented in training, in order and each sample once otherwise."""
    augment = AugmentConfig(mirror_probability=args.mirror, rotation_deg=args.rotation, zoom=args.zoom,
                            brightness=args.photometric, contrast=args.photometric, saturation=args.photometric,
                            noisy_copies=args.noisy_copies) if train else None
    dataset = build_dataset(config, cache, args.dataroot, augment, args.seed)
    batches = (GlobalBatches(len(dataset), args.batch_size, args.accumulation_steps, args.seed, ranks) if train
               else batches_of_rank(len(dataset), args.batch_size, ranks))
    return DataLoader(dataset, batch_sampler=batches, num_workers=args.num_workers, collate_fn=collate,
                      pin_memory=args.device != "cpu" and torch.cuda.is_available(), worker_init_fn=ignore_signals,
                      timeout=args.rank_timeout if args.num_workers else 0,
                      generator=torch.Generator())  # of its own, or it would draw from the model's dropout


def check_warmup(args: argparse.Namespace, steps_per_epoch: int) -> None:
    """Raise UserError when the run would end before its learning rate is reached."""
    total = args.epochs * steps_per_epoch
    if args.warmup_steps >= total:
        raise UserError(f"--warmup-steps {args.warmup_steps}: the whole run has {total} steps ({args.epochs} epochs of "
                        f"{steps_per_epoch}); give fewer, a tenth of the run at most is usual")


def open_folder(args: argparse.Namespace, held: contextlib.ExitStack) -> Path:
    """The run's folder, locked until `held` closes. Raises UserError when another run is, or was, in it."""
    if args.resume and args.resume != "auto":
        folder = Path(args.output_dir or Path(args.resume).parent)
        if folder.resolve() != Path(args.resume).resolve().parent:
            raise UserError(f"--output-dir {folder}: not the folder of --resume {args.resume}; leave it out")
        if not folder.is_dir():
            raise UserError(f"{args.resume}: no such checkpoint; give the path of one")
    else:
        stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
        folder = Path(args.output_dir or f"outputs/map_detection_stage2_{stamp}")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output-dir {folder}: is a file; choose another")
        there = {path.name for path in folder.iterdir()} - {"run.lock"} if folder.is_dir() else set()
        if there and args.resume and "config.json" not in there:
            raise UserError(f"--output-dir {folder}: holds no config.json, so no run of this script; choose another")
        if there and not args.resume:
            raise UserError(f"--output-dir {folder}: exists and is not empty; choose another or go on with --resume")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output-dir {folder}: cannot be made ({error.strerror}); choose another") from error
    held.enter_context(RunLock(folder))
    return folder


def write_config(path: Path, args: argparse.Namespace, config: ModelConfig, loaders: list[DataLoader],
                 ranks: Ranks) -> None:
    """config.json: the settings, what they were applied to, and what ran them."""
    train, val = (loader.dataset.cache for loader in loaders)
    content = {
        "args": vars(args), "model_config": config.to_dict(), "classes": list(CLASSES),
        "samples": {"train": len(train), "val": len(val)},
        "gt_caches": {"train": train.meta["digest"], "val": val.meta["digest"]},
        "ranks": ranks.world_size, "global_batch": loaders[0].batch_sampler.global_batch,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": source_commit(), "machine": machine(),
    }
    write_json(path, content)


def describe(trainer: Trainer, loaders: list[DataLoader], differences: list[str]) -> list[str]:
    """The lines at the head of a run's log."""
    args, config, lines = trainer.args, trainer.config, []
    if config.qformer_pretrained == "none" and "qformer" not in config.without and args.lr_qformer < 1e-4:
        lines.append("note: the Q-Former starts from random weights and hardly learns at --lr-qformer "
                     f"{args.lr_qformer:g}; give 1e-3 or so")
    sampler, val = loaders[0].batch_sampler, loaders[1].dataset
    lines += [
        format_parameter_table(parameter_rows(trainer.model), trainer.rates),
        f"preset {args.preset}, LLM {config.llm_path}; {sampler.num_samples} training and {len(val)} validation "
        f"samples, {range_name(config.pc_range)} m; {trainer.device.type}, {args.precision}",
        f"{trainer.total_steps} steps of {sampler.global_batch} samples ({trainer.ranks.world_size} ranks x "
        f"{args.batch_size} x {args.accumulation_steps} accumulated), {sampler.steps_per_epoch} an epoch, which leaves "
        f"out {sampler.num_samples % sampler.global_batch} samples, each time others",
    ]
    return lines + [f"changed since the checkpoint: {text}" for text in differences]


def resumed_checkpoint(args: argparse.Namespace, folder: Path, ranks: Ranks) -> tuple[Path | None, dict | None]:
    """On all ranks: the checkpoint to go on from and its content; None for both where the run begins."""
    checkpoint = None

    def find() -> Path | None:
        nonlocal checkpoint  # what the main rank reads to find it
        path, checkpoint = find_checkpoint(args.resume, folder) or (None, None)
        return path

    path = ranks.from_main(find) if args.resume else None
    if path and not ranks.is_main:
        checkpoint = load_checkpoint(path)
    return path, checkpoint


def prepare(
    args: argparse.Namespace, ranks: Ranks, watch: SignalWatch, held: contextlib.ExitStack
) -> tuple[Trainer, list[str]]:
    """A trainer that stands where the run begins or goes on, and what there is to say of that.

    Checks come before what takes long, and both before anything is written. Raises UserError.
    """
    config, caches = ranks.from_main(lambda: (config_from_flags(args), open_caches(args)))
    loaders = [build_loader(args, config, cache, cache is caches[0], ranks) for cache in caches]
    ranks.from_main(lambda: check_warmup(args, loaders[0].batch_sampler.steps_per_epoch))
    folder = ranks.from_main(lambda: open_folder(args, held))
    path, checkpoint = resumed_checkpoint(args, folder, ranks)
    digests = {f"{split}_digest": cache.meta["digest"] for split, cache in zip(("train", "val"), caches, strict=True)}
    global_batch = loaders[0].batch_sampler.global_batch
    differences = ranks.from_main(
        lambda: check_resumed_settings(path, checkpoint, args, config, digests, global_batch) if path else []
    )
    if args.shard_llm:
        ranks.from_main(lambda: check_sharding(config, ranks.world_size))
    ranks.from_main(lambda: check_compiling(config, default_device(args.device), args.compile, args.shard_llm))
    trainer = Trainer(args, config, *loaders, ranks, watch)
    lines = describe(trainer, loaders, differences)
    if checkpoint:
        trainer.restore(checkpoint, path)
        lines.append(f"going on from {path}, after step {trainer.step}")
    recorded = checkpoint["num_records"] if checkpoint else 0
    ranks.from_main(lambda: write_config(folder / "config.json", args, config, loaders, ranks))
    recorded = ranks.from_main(lambda: drop_later_records(folder, recorded))
    trainer.start(folder, RunLog(folder if ranks.is_main else None, recorded, args.tensorboard, trainer.step))
    return trainer, lines


def main() -> None:
    args = parse_args(__doc__)
    ranks = join_ranks(args.rank_timeout, on_gpus=args.device != "cpu" and torch.cuda.is_available())
    watch = SignalWatch()  # until the first step there is nothing to save, and a signal ends the program at once
    with contextlib.ExitStack() as held:
        with collected_messages("models", "utils") as messages:
            trainer, lines = prepare(args, ranks, watch, held)
        for line in messages + lines:
            trainer.log.line(line)
        with watch:
            try:
                trainer.run()
            finally:
                end_workers()
    leave_ranks(ranks)


if __name__ == "__main__":
    run_cli(main)
