"""One run on one rank: epochs of steps, validation, checkpoints, and going on from them."""

import argparse
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from evaluation.chamfer_ap import format_table
from models.alarms import SPREADS, collapsed
from models.compilation import compile_frozen
from models.config import ModelConfig
from models.criterion import MapCriterion
from models.detector import MapDetector, build_detector
from models.llm.sharding import shard_llm
from training.ema import WeightAverage
from training.interruption import Interrupted, SignalWatch
from training.progress import Meter, format_seconds, memory_gb, summarize_losses
from training.step import StepResult, TrainStep
from training.validation import score_split
from utils.checkpoint import frozen_identity, load_trainable, save_checkpoint, trainable_state
from utils.checkpoint_folder import checkpoint_name, remove_old, set_aside_later
from utils.device import autocast_of, default_device
from utils.distributed import Ranks, with_averaged_gradients
from utils.errors import UserError
from utils.optim import build_optimizer, format_learning_rates, lr_factor, set_learning_rates
from utils.run_log import RunLog, progress_bar


class Trainer:
    """Model, optimizer and loaders of one run, and the loop over them.

    Where it stands: `epoch` epochs are finished, and `steps_done` steps of the next one; `step` optimizer steps in all.
    `validated`: the last finished epoch has had its validation, if one was due.
    """

    def __init__(self, args: argparse.Namespace, config: ModelConfig, train_loader: DataLoader,
                 val_loader: DataLoader, ranks: Ranks, watch: SignalWatch):
        self.args, self.config, self.ranks, self.watch = args, config, ranks, watch
        self.train_loader, self.val_loader = train_loader, val_loader
        self.sampler = train_loader.batch_sampler
        self.device = default_device(args.device)
        self.dtype = autocast_of(args.precision)
        torch.manual_seed(args.seed)
        self.model: MapDetector = build_detector(config, self.device, self.dtype or torch.float32,
                                                 llm_device="cpu" if args.shard_llm else None)
        self.frozen_identity = frozen_identity(self.model)
        if args.shard_llm:
            shard_llm(self.model.llm, self.device)
        if args.compile:
            compile_frozen(self.model)
        torch.manual_seed(args.seed + 1_000_003 * ranks.rank)  # dropout; rank 0 draws what one process alone draws
        self.rates = {"qformer": args.lr_qformer, "queries": args.lr_queries, "decoder": args.lr_decoder,
                      "lora": args.lr_lora}
        self.optimizer = build_optimizer(self.model, self.rates, args.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.precision == "fp16")
        network = with_averaged_gradients(self.model) if ranks.world_size > 1 else self.model
        criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range, args.segmentation_weight)
        self.train_step = TrainStep(network, criterion, self.optimizer, self.scaler, self.device, self.dtype,
                                    args.grad_clip, ranks, watch)
        self.ema = WeightAverage(self.model, args.ema_decay) if args.ema_decay else None
        self.total_steps = args.epochs * self.sampler.steps_per_epoch
        self.epoch, self.steps_done, self.step, self.validated = 0, 0, 0, True
        self.best_map, self.overflows = -1.0, 0
        self._saved_at: tuple[int, int, bool] | None = None
        self._restored = False  # even at step 0, where --reshuffle begins the first epoch again
        self.log = RunLog(None)
        self.folder = Path()

    def start(self, folder: Path, log: RunLog) -> None:
        """Where checkpoints and lines go from now on."""
        self.folder, self.log = folder, log

    def run(self) -> None:
        """Epochs until the last. Raises SystemExit with the signal's code when the run was asked to end."""
        try:
            self._run()
        except Interrupted as interrupted:
            if self.step == 0:
                self.log.line(f"{interrupted} before the first step, nothing to save")
            else:
                if self._saved_at != self._position():
                    self.save(self._position_name(), must=True)
                self.log.line(f"{interrupted}: {self._position_name()} is saved; go on with --resume auto "
                              f"--output-dir {self.folder}")
            raise SystemExit(interrupted.exit_code) from None

    def _run(self) -> None:
        if self.args.eval_untrained and self.step == 0 and not self._restored:
            self.validate()
        while self.epoch < self.args.epochs or not self.validated:
            if self.validated:
                self.train_epoch()
            last = self.epoch == self.args.epochs
            every = self.args.save_every_steps
            saves = self.epoch % self.args.save_interval == 0 or last or bool(every and self.step % every == 0)
            if self._saved_at is None and saves:  # before validation, whose failure must not cost the epoch
                self.save(self._position_name())
            if not self.validated:
                score = self.validate()
                self.validated = True
                if not score <= self.best_map:  # true also of nan, which a split without ground truth has
                    before, self.best_map = self.best_map, max(self.best_map, score)
                    if not self.save("best_model.pth"):
                        self.best_map = before  # of the file that is there, so that a later one can take its place
                if saves:  # again, with the best score
                    self.save(self._position_name())
        self.save("final_model.pth", must=True)
        best = f"{self.best_map:.3f}" if self.best_map >= 0 else "none on this ground truth"
        self.log.line(f"best mAP {best}; checkpoints in {self.folder}")

    def train_epoch(self) -> None:
        """The steps that are left of the epoch."""
        self.model.train()
        self.sampler.set_position(self.epoch, self.steps_done)
        self.train_loader.dataset.set_epoch(self.epoch)
        steps = self.sampler.steps_per_epoch
        meter, asked = Meter(), time.monotonic()
        with progress_bar(steps, f"epoch {self.epoch + 1}/{self.args.epochs}", self.steps_done) as bar:
            for batches in zip(*[iter(self.train_loader)] * self.args.accumulation_steps, strict=True):
                meter.waited(time.monotonic() - asked)
                factor = lr_factor(self.step, self.args.warmup_steps, self.total_steps)
                set_learning_rates(self.optimizer, self.rates, factor)
                result = self.train_step(batches, self.step)
                self._stepped(result)
                meter.stepped(self.sampler.global_batch)
                bar.update()
                if self.step % self.args.log_interval == 0 or self.steps_done == steps:
                    self._log_step(result, meter.read())
                every = self.args.save_every_steps
                if every and self.step % every == 0 and self.steps_done < steps:
                    self.save(self._position_name())
                asked = time.monotonic()
        self.epoch, self.steps_done = self.epoch + 1, 0
        self.validated = self.epoch % self.args.eval_interval != 0 and self.epoch != self.args.epochs
        self._saved_at = None

    def _stepped(self, result: StepResult) -> None:
        self.step += 1
        self.steps_done += 1
        self._saved_at = None
        self.overflows += result.overflowed
        if self.ema and not result.overflowed:
            self.ema.update()

    def _log_step(self, result: StepResult, speed: dict[str, float]) -> None:
        values = self.train_step.over_ranks(result)
        left = format_seconds((self.total_steps - self.step) * speed["seconds_per_step"])
        norms = " ".join(f"{name.removeprefix('grad_norm_')} {value:.2f}" for name, value in values.items()
                         if name.startswith("grad_norm_"))
        memory = memory_gb(self.device)
        self.log.line(
            f"epoch {self.epoch + 1}/{self.args.epochs} step {self.steps_done}/{self.sampler.steps_per_epoch} "
            f"{summarize_losses(values)} grad {result.gradient_norm:.2f} ({norms}) "
            f"{format_learning_rates(self.optimizer)} {speed['seconds_per_step']:.2f} s/step (data "
            f"{speed['data_seconds']:.2f}) {speed['samples_per_s']:.2f} samples/s {memory:.1f} GB overflows "
            f"{self.overflows} left {left}"
        )
        self.log.record(kind="train", epoch=self.epoch + 1, step=self.step, grad_norm=result.gradient_norm, **speed,
                        lr={group["name"]: group["lr"] for group in self.optimizer.param_groups},
                        memory_gb=memory, overflows=self.overflows, **values)

    def validate(self) -> float:
        """Print the AP table of the validation split, of the averaged weights if there are; returns its mAP.

        Raises Interrupted, on all ranks, when one was asked to end.
        """
        if self.ema:
            self.ema.exchange()
        try:
            result, measured = score_split(self.model, self.val_loader, self.device, self.dtype, self.config.pc_range,
                                           self.args.shard_llm, self.ranks, self.watch)
        finally:
            if self.ema:
                self.ema.exchange()
        self.log.line(format_table(result))
        spreads = ", ".join(f"{states} {measured[name]:.3f}" for name, states in SPREADS.items())
        self.log.line(f"epoch {self.epoch} validation: mAP {result['mAP']:.3f}, {measured['seconds']:.0f} s, spread "
                      f"across scenes: {spreads} (near 0: collapsed)")
        for states in collapsed(measured):
            self.log.line(f"warning: the {states} are nearly the same for every scene; lower the rates, or raise "
                          "--segmentation-weight, which keeps them apart")
        self.log.record(kind="val", epoch=self.epoch, step=self.step, **measured, result=result,
                        gt_digest=self.val_loader.dataset.cache.meta["digest"])
        return result["mAP"]

    def save(self, name: str, must: bool = False) -> bool:
        """On all ranks: write a checkpoint of this place in the run; returns whether it is written.

        What cannot be written is said in the log, and the run goes on with the older checkpoints: space may be free
        again at the next one. With `must` it is a UserError.
        """
        self._check_drift()
        rng_states = self.ranks.gather(self._rng_state())

        def write() -> str:
            path = self.folder / name
            try:
                save_checkpoint(self.state(rng_states), path)
                if name == self._position_name():
                    set_aside_later(path)  # what another course of the run has left would be the newest
                    remove_old(self.folder, self.args.keep_last)
            except UserError as error:
                if must:
                    raise
                return str(error)
            return ""

        problem = self.ranks.from_main(write)
        if problem:
            self.log.line(f"warning: no checkpoint: {problem}; the run goes on and tries again at the next one")
        elif name == self._position_name():
            self._saved_at = self._position()
        return not problem

    def state(self, rng_states: list[dict]) -> dict:
        """A checkpoint: plain types and tensors. rng_states: of every rank."""
        return {
            "epoch": self.epoch,
            "steps_done": self.steps_done,
            "step": self.step,
            "validated": self.validated,
            "best_map": self.best_map,
            "overflows": self.overflows,
            "num_records": self.log.num_records,
            "global_batch": self.sampler.global_batch,
            "train_digest": self.train_loader.dataset.cache.meta["digest"],
            "val_digest": self.val_loader.dataset.cache.meta["digest"],
            "model_state_dict": trainable_state(self.model),
            "ema_state_dict": self.ema.state_dict() if self.ema else {},
            "ema_steps": self.ema.steps if self.ema else 0,
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": {"step": self.step, "warmup_steps": self.args.warmup_steps,
                                     "total_steps": self.total_steps},
            "scaler_state_dict": self.scaler.state_dict(),
            "rng_states": rng_states,
            "args": dict(vars(self.args)),
            "model_config": self.config.to_dict(),
            "frozen_identity": self.frozen_identity,
        }

    def restore(self, checkpoint: dict, path: Path) -> None:
        """Go on from a checkpoint as if nothing had happened. Raises UserError when its tensors do not fit."""
        load_trainable(self.model, checkpoint, path, identity=self.frozen_identity)
        self.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        for group in self.optimizer.param_groups:  # which may have been allowed to change
            group["weight_decay"] = self.args.weight_decay
        if checkpoint["scaler_state_dict"]:  # empty where it was not trained in fp16
            self.scaler.load_state_dict(checkpoint["scaler_state_dict"])
        for name in ("epoch", "steps_done", "step", "validated", "best_map", "overflows"):
            setattr(self, name, checkpoint[name])
        if checkpoint["val_digest"] != self.val_loader.dataset.cache.meta["digest"]:
            self.best_map = -1.0  # scores on other ground truth cannot be compared
        if checkpoint["global_batch"] != self.sampler.global_batch:  # --reshuffle
            self.steps_done, self.step = 0, self.epoch * self.sampler.steps_per_epoch
        self._restored = True
        self._saved_at = self._position() if self.step and path.name == self._position_name() else None
        if self.ema:
            self.ema = WeightAverage(self.model, self.args.ema_decay)
            if checkpoint["ema_state_dict"]:
                self.ema.load_state_dict(checkpoint["ema_state_dict"], checkpoint["ema_steps"])
        if self.ranks.rank < len(checkpoint["rng_states"]):
            state = checkpoint["rng_states"][self.ranks.rank]
            torch.set_rng_state(state["cpu"])
            if self.device.type == "cuda" and len(state["cuda"]):
                torch.cuda.set_rng_state(state["cuda"], self.device)

    def _rng_state(self) -> dict:
        on_gpu = self.device.type == "cuda"
        return {"cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if on_gpu else torch.zeros(0, dtype=torch.uint8)}

    def _check_drift(self) -> None:
        """Raise RuntimeError when the ranks no longer have the same weights."""
        if self.ranks.world_size == 1:
            return
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        # Of bits taken for whole numbers: float sums depend on their order, which differs between kinds of GPUs.
        sums = torch.stack([p.detach().view(torch.int32).long().sum() for p in trained.values()])
        sums = self.ranks.gather(sums.cpu())
        for rank, other in enumerate(sums):
            if not torch.equal(other, sums[0]):
                name = list(trained)[int((other != sums[0]).nonzero()[0])]
                raise RuntimeError(f"step {self.step}: {name} is not the same on rank {rank} as on rank 0; nothing was "
                                   "saved, go on from the last checkpoint")

    def _position(self) -> tuple[int, int, bool]:
        return self.epoch, self.steps_done, self.validated

    def _position_name(self) -> str:
        steps = self.sampler.steps_per_epoch
        if self.steps_done:
            return checkpoint_name(self.epoch + 1, self.steps_done, steps)
        return checkpoint_name(self.epoch, steps, steps)
