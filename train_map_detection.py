#!/usr/bin/env python3
"""Train the map detector: flags -> build -> epochs of train and validate -> checkpoints.

Example (a synthetic world, two CPU cores): bash scripts/quickstart.sh
"""

import argparse
import json
import logging
import math
import time
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from data.dataset import collate
from data.gt_cache import GT_STYLES, GTCache, default_cache_path, range_name
from data.splits import SPLITS
from data.transforms import AugmentConfig
from evaluation.chamfer_ap import evaluate, format_table, thresholds_for
from evaluation.inference import build_dataset, config_of, ground_truth_of, move_batch, predict
from models.config import ModelConfig
from models.criterion import MapCriterion
from models.detector import MapDetector, build_detector
from models.flags import add_model_arguments, config_from_flags
from utils.checkpoint import frozen_identity, load_checkpoint, load_trainable, save_checkpoint, trainable_state
from utils.device import default_device
from utils.errors import UserError, run_cli
from utils.files import default_dataroot, replacing
from utils.frame import CLASSES, PC_RANGES
from utils.optim import build_optimizer, build_scheduler, format_learning_rates
from utils.parameter_table import format_parameter_table, parameter_rows
from utils.run_log import RunLog, collected_messages, progress_bar

# Flags whose change at a resumption would make it another run.
RESULT_FLAGS = ("batch_size", "epochs", "lr_qformer", "lr_queries", "lr_decoder", "weight_decay", "warmup_steps",
                "grad_clip", "precision", "seed", "mirror", "photometric", "lr_lora")
AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of a run. Raises UserError for values that cannot be meant."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataroot", default=default_dataroot(), help="folder with samples/, maps/ and v1.0-*/")
    data.add_argument("--version", default="v1.0-trainval", help="nuScenes version the caches were made from")
    data.add_argument("--gt-cache-train", help="cache of the training split; made by tools/generate_gt_cache.py")
    data.add_argument("--gt-cache-val", help="cache of the validation split")
    data.add_argument("--train-split", default="train", choices=SPLITS)
    data.add_argument("--val-split", default="val", choices=SPLITS)
    data.add_argument("--gt-style", default="maptr", choices=GT_STYLES, help="whose ground-truth vectors")
    data.add_argument("--num-workers", type=int, default=4, help="processes that decode images")
    data.add_argument("--mirror", type=float, default=0.0, help="probability of a left-right mirrored sample")
    data.add_argument("--photometric", type=float, default=0.0,
                      help="brightness, contrast and saturation vary by up to this share")
    add_model_arguments(parser)
    run = parser.add_argument_group("training")
    run.add_argument("--epochs", type=int, default=24)
    run.add_argument("--batch-size", type=int, default=4)
    run.add_argument("--lr-qformer", type=float, default=1e-5)
    run.add_argument("--lr-queries", type=float, default=1e-4)
    run.add_argument("--lr-decoder", type=float, default=1e-4)
    run.add_argument("--lr-lora", type=float, default=1e-4, help="of --lora-rank and --unfreeze-llm")
    run.add_argument("--weight-decay", type=float, default=0.01)
    run.add_argument("--warmup-steps", type=int, default=500)
    run.add_argument("--grad-clip", type=float, default=0.1, help="largest norm of the whole gradient")
    run.add_argument("--precision", choices=AUTOCAST, help="default: fp16 on a GPU, fp32 on a CPU")
    run.add_argument("--fp16", action="store_true", help="the same as --precision fp16")
    run.add_argument("--seed", type=int, default=0)
    out = parser.add_argument_group("output")
    out.add_argument("--output-dir", help="default: outputs/map_detection_stage2_YYYYMMDD_HHMMSS")
    out.add_argument("--log-interval", type=int, default=50, help="steps between log lines")
    out.add_argument("--save-interval", type=int, default=1, help="epochs between checkpoints")
    out.add_argument("--eval-interval", type=int, default=1, help="epochs between validations")
    out.add_argument("--eval-untrained", action="store_true", help="validate once before the first step, to compare")
    out.add_argument("--resume", help="checkpoint_epoch_N.pth to go on from, in its own folder")
    args = parser.parse_args(argv)
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse values that cannot be meant, and settle the ones that depend on others."""
    for name in ("epochs", "batch_size", "log_interval", "save_interval", "eval_interval"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    for name in ("lr_qformer", "lr_queries", "lr_decoder", "lr_lora", "weight_decay", "warmup_steps", "num_workers"):
        if not getattr(args, name) >= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must not be negative")
    for name in ("mirror", "photometric"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be between 0 and 1")
    if not 0 <= args.seed < 2**31:
        raise UserError(f"--seed {args.seed}: must be between 0 and {2**31 - 1}")
    if not args.grad_clip > 0:
        raise UserError(f"--grad-clip {args.grad_clip}: must be positive")
    if args.fp16:
        if args.precision not in (None, "fp16"):
            raise UserError(f"--fp16 --precision {args.precision}: give one of the two")
        args.precision = "fp16"
    if args.precision is None:
        args.precision = "fp16" if torch.cuda.is_available() else "fp32"


class EpochSampler(Sampler[int]):
    """A permutation of the samples that is a function of (seed, epoch) alone."""

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.length, generator=generator).tolist())


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


def build_loader(args: argparse.Namespace, config: ModelConfig, cache: GTCache, train: bool) -> DataLoader:
    """Batches of a cache, shuffled by (seed, epoch) and augmented in training, in order in validation."""
    augment = AugmentConfig(mirror_probability=args.mirror, brightness=args.photometric,
                            contrast=args.photometric, saturation=args.photometric) if train else None
    dataset = build_dataset(config, cache, args.dataroot, augment, args.seed)
    sampler = EpochSampler(len(dataset), args.seed) if train else None
    return DataLoader(dataset, args.batch_size, sampler=sampler, num_workers=args.num_workers,
                      collate_fn=collate, pin_memory=torch.cuda.is_available(),
                      generator=torch.Generator())  # of its own, or it would draw from the model's dropout


def prepare_output(args: argparse.Namespace) -> Path:
    """The run's folder. Raises UserError when it holds another run."""
    if args.resume:
        folder = Path(args.output_dir or Path(args.resume).parent)
        if folder.resolve() != Path(args.resume).resolve().parent:
            raise UserError(f"--output-dir {folder}: not the folder of --resume {args.resume}; leave it out")
        return folder
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    folder = Path(args.output_dir or f"outputs/map_detection_stage2_{stamp}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output-dir {folder}: exists and is not empty; choose another or go on with --resume")
    return folder


def check_resumed_settings(checkpoint: dict, config: ModelConfig, args: argparse.Namespace) -> None:
    """Raise UserError for the first setting that shapes the result and differs from the checkpoint's."""
    before, now = config_of(checkpoint, args.resume).to_dict(), config.to_dict()
    before.update({name: checkpoint["args"].get(name) for name in RESULT_FLAGS})
    now.update({name: getattr(args, name) for name in RESULT_FLAGS})
    # Of frozen parts the weights decide, wherever they lie, and load_trainable compares those.
    for name in sorted(now.keys() - {"llm_path", "qformer_pretrained", "llm_checkpointing"}):
        if now[name] != before[name]:
            raise UserError(f"{args.resume}: was trained with {name} {before[name]}, this run has {now[name]}; resume "
                            f"with the settings in {Path(args.resume).parent / 'config.json'}")


class Trainer:
    """Model, optimizer and loaders of one run, and the loop over them."""

    def __init__(self, args: argparse.Namespace, config: ModelConfig, train_loader: DataLoader,
                 val_loader: DataLoader, log: RunLog, folder: Path):
        self.args, self.config, self.log, self.folder = args, config, log, folder
        self.train_loader, self.val_loader = train_loader, val_loader
        self.device = default_device()
        self.dtype = AUTOCAST[args.precision]
        torch.manual_seed(args.seed)
        self.model: MapDetector = build_detector(config, self.device, self.dtype or torch.float32)
        self.frozen_identity = frozen_identity(self.model)
        self.criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
        self.rates = {"qformer": args.lr_qformer, "queries": args.lr_queries, "decoder": args.lr_decoder,
                      "lora": args.lr_lora}
        self.optimizer = build_optimizer(self.model, self.rates, args.weight_decay)
        self.scheduler = build_scheduler(self.optimizer, args.warmup_steps, args.epochs * len(train_loader))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.precision == "fp16")
        self.epoch, self.step, self.best_map = 0, 0, -1.0

    def train_step(self, batch: dict) -> tuple[dict[str, float], float]:
        """One optimizer step; returns the losses (unweighted parts and the weighted `loss`) and the gradient norm."""
        batch = move_batch(batch, self.device)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            outputs = self.model(batch)
        try:
            losses = self.criterion(outputs, batch)
            loss = self.criterion.total(losses)
            values = torch.stack([loss, *losses.values()]).tolist()  # one copy from the device
            parts = dict(zip(("loss", *losses), values, strict=True))
            if not math.isfinite(parts["loss"]):
                raise FloatingPointError(f"the loss is {parts['loss']}, its parts {parts}")
        except FloatingPointError as error:
            raise FloatingPointError(f"step {self.step}: {error}, samples {batch['sample_tokens']}") from error
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        grad_norm: Tensor = torch.nn.utils.clip_grad_norm_(
            [p for group in self.optimizer.param_groups for p in group["params"]], self.args.grad_clip
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.step += 1
        parts["scene_std"] = outputs["scene_std"].item()
        parts["query_std"] = outputs["query_std"].item()
        return parts, grad_norm.item()

    def train_epoch(self) -> None:
        """All batches once."""
        self.model.train()
        self.train_loader.sampler.epoch = self.epoch
        self.train_loader.dataset.set_epoch(self.epoch)
        steps = len(self.train_loader)
        waited, since, since_step = 0.0, time.monotonic(), self.step
        with progress_bar(steps, f"epoch {self.epoch + 1}/{self.args.epochs}") as bar:
            asked = time.monotonic()
            for index, batch in enumerate(self.train_loader):
                waited += time.monotonic() - asked
                learning_rates, lr = format_learning_rates(self.optimizer), self.scheduler.get_last_lr()
                parts, grad_norm = self.train_step(batch)
                bar.update()
                if self.step % self.args.log_interval == 0 or index + 1 == steps:
                    seconds = (time.monotonic() - since) / (self.step - since_step)
                    self.log.line(
                        f"epoch {self.epoch + 1}/{self.args.epochs} step {index + 1}/{steps} "
                        f"{summarize_losses(parts)} grad {grad_norm:.2f} {seconds:.2f} s/step "
                        f"(data {waited / (self.step - since_step):.2f}) {learning_rates}"
                    )
                    self.log.record(kind="train", epoch=self.epoch + 1, step=self.step, grad_norm=grad_norm,
                                    seconds_per_step=seconds, lr=lr, **parts)
                    waited, since, since_step = 0.0, time.monotonic(), self.step
                asked = time.monotonic()

    def validate(self) -> float:
        """Print the AP table of the validation split; returns its mAP in [0, 1]."""
        predictions, measured = predict(
            self.model, self.val_loader, self.device, self.dtype, self.config.pc_range
        )
        ground_truth = ground_truth_of(self.val_loader.dataset.cache)
        result = evaluate(predictions, ground_truth, thresholds=thresholds_for(self.config.pc_range))
        self.log.line(format_table(result))
        self.log.line(f"epoch {self.epoch} validation: mAP {result['mAP']:.3f}, {measured['seconds']:.0f} s, spread "
                      f"across scenes: scene tokens {measured['scene_std']:.3f}, map queries "
                      f"{measured['query_std']:.3f} (near 0: collapsed)")
        self.log.record(kind="val", epoch=self.epoch, step=self.step, **measured, result=result)
        return result["mAP"]

    def state(self) -> dict:
        """A checkpoint: plain types and tensors."""
        return {
            "epoch": self.epoch,
            "model_state_dict": trainable_state(self.model),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": self.scheduler.state_dict(),
            "scaler_state_dict": self.scaler.state_dict(),
            "args": dict(vars(self.args)),
            "model_config": self.config.to_dict(),
            "frozen_identity": self.frozen_identity,
            "step": self.step,
            "best_map": self.best_map,
            "rng_state": torch.get_rng_state(),
            "cuda_rng_states": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def restore(self, checkpoint: dict, path: str) -> None:
        """Go on from a checkpoint as if nothing had happened. Raises UserError when its tensors do not fit."""
        load_trainable(self.model, checkpoint, path)
        self.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        self.scheduler.load_state_dict(checkpoint["scheduler_state_dict"])
        self.scaler.load_state_dict(checkpoint["scaler_state_dict"])
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        self.best_map = checkpoint["best_map"]
        torch.set_rng_state(checkpoint["rng_state"])
        if self.device.type == "cuda" and checkpoint["cuda_rng_states"]:
            torch.cuda.set_rng_state_all(checkpoint["cuda_rng_states"])

    def run(self) -> None:
        """Epochs until the last; checkpoints, the best and the final model on the way."""
        if self.args.eval_untrained and self.step == 0:
            self.validate()
        while self.epoch < self.args.epochs:
            self.train_epoch()
            self.epoch += 1
            last = self.epoch == self.args.epochs
            evaluates = self.epoch % self.args.eval_interval == 0 or last
            saves = self.epoch % self.args.save_interval == 0 or last
            path = self.folder / f"checkpoint_epoch_{self.epoch}.pth"
            if saves:  # before validation, whose failure must not cost the epoch
                save_checkpoint(self.state(), path)
            if evaluates:
                score = self.validate()
                if score > self.best_map:
                    self.best_map = score
                    save_checkpoint(self.state(), self.folder / "best_model.pth")
                    if saves:  # again, with the best score
                        save_checkpoint(self.state(), path)
        save_checkpoint(self.state(), self.folder / "final_model.pth")
        self.log.line(f"best mAP {self.best_map:.3f}; checkpoints in {self.folder}")


def summarize_losses(parts: dict[str, float]) -> str:
    """Total, the parts of the last head, the segmentations and the spreads, for the log line."""
    last = max(int(name.rsplit("_", 1)[1]) for name in parts if name.startswith("loss_cls_"))
    shown = {"loss": parts["loss"], "cls": parts[f"loss_cls_{last}"], "pts": parts[f"loss_pts_{last}"],
             "dir": parts[f"loss_dir_{last}"], "seg": parts["loss_seg"], "ground": parts["loss_ground"],
             "scene_std": parts["scene_std"], "query_std": parts["query_std"]}
    return " ".join(f"{name} {value:.3f}" for name, value in shown.items())


def main() -> None:
    args = parse_args()
    config = config_from_flags(args)
    checkpoint = load_checkpoint(args.resume) if args.resume else None
    if checkpoint:
        check_resumed_settings(checkpoint, config, args)
    folder = prepare_output(args)
    train_cache, val_cache = open_caches(args)
    train_loader = build_loader(args, config, train_cache, train=True)
    val_loader = build_loader(args, config, val_cache, train=False)
    log = RunLog(folder)
    with collected_messages(logging.getLogger("models")) as messages:
        trainer = Trainer(args, config, train_loader, val_loader, log, folder)
    if checkpoint:
        trainer.restore(checkpoint, args.resume)
    settings = {"args": vars(args), "model_config": config.to_dict(), "classes": list(CLASSES)}
    with replacing(folder / "config.json") as file:
        file.write((json.dumps(settings, indent=2) + "\n").encode())
    for message in messages:
        log.line(message)
    if config.qformer_pretrained == "none" and args.lr_qformer < 1e-4:
        log.line("note: the Q-Former starts from random weights and hardly learns at --lr-qformer "
                 f"{args.lr_qformer:g}; give 1e-3 or so")
    log.line(format_parameter_table(parameter_rows(trainer.model), trainer.rates))
    log.line(f"preset {args.preset}, LLM {config.llm_path}; {len(train_cache)} training and {len(val_cache)} "
             f"validation samples, {range_name(config.pc_range)} m; {trainer.device.type}, {args.precision}")
    trainer.run()


if __name__ == "__main__":
    run_cli(main)
