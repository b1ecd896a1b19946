import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models.flags
from data.gt_cache import GTCache
from data.transforms import AugmentConfig
from tests.micro import micro_config
from tests.micro_trainer import make_trainer
from tests.training_runs import assert_same_result
from train_map_detection import main
from training.flags import parse_args
from training.interruption import Interrupted
from training.resume import check_resumed_settings
from training.sampler import GlobalBatches
from utils.checkpoint import CHECKPOINT_KEYS
from utils.distributed import Ranks
from utils.errors import UserError
from utils.run_log import RunLog

ROOT = Path(__file__).resolve().parents[1]


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("flags", [["--precision", "fp32"], ["--precision", "fp16"], ["--precision", "bf16"],
                                   ["--ema-decay", "0.9"], ["--batch-size", "2", "--accumulation-steps", "2"]])
def test_four_steps_equal_two_and_a_resumed_two_bit_for_bit(flags, tmp_path, synthetic_world, caches):
    make_trainer(tmp_path / "whole", synthetic_world, caches, *flags).run()
    first = make_trainer(tmp_path / "halves", synthetic_world, caches, *flags, "--save-every-steps", "1")
    stepped = first._stepped

    def stop_after_three(result):  # in the middle of the second epoch
        stepped(result)
        if first.step == 3:
            first.watch.received = 15

    first._stepped = stop_after_three
    with pytest.raises(SystemExit) as ended:
        first.run()
    assert ended.value.code == 143
    torch.manual_seed(99)  # another process would start anywhere
    path = tmp_path / "halves" / "checkpoint_epoch_2_step_1.pth"
    second = make_trainer(tmp_path / "halves", synthetic_world, caches, *flags, resume=path)
    assert (second.step, second.epoch, second.steps_done) == (3, 1, 1)
    second.run()
    assert_same_result(tmp_path / "whole", tmp_path / "halves")


def test_a_run_leaves_what_the_design_says(tmp_path, synthetic_world, caches, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(models.flags, "PRESETS", {"tiny": micro_config()})
    flags = ["--preset", "tiny", "--dataroot", str(synthetic_world), "--epochs", "2", "--num-workers", "1",
             "--warmup-steps", "2", "--log-interval", "1", "--eval-untrained", "--output-dir", str(out)]
    monkeypatch.setattr(sys, "argv", ["train_map_detection.py", *flags])
    main()
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "train.log", "metrics.jsonl", "checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth",
                     "best_model.pth", "final_model.pth", "run.lock"}
    checkpoint = weights(out / "checkpoint_epoch_2.pth")
    assert checkpoint.keys() == CHECKPOINT_KEYS | {"digest"}
    assert {"epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "args"} <= checkpoint.keys()
    assert checkpoint["scheduler_state_dict"] == {"step": 4, "warmup_steps": 2, "total_steps": 4}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records if r["kind"] == "val"] == [0, 1, 2]
    steps = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    assert steps[1]["lr"] == {"qformer": 1e-5, "queries": 1e-4, "decoder": 1e-4}
    assert all(r["grad_norm"] >= r["grad_norm_decoder"] > 0 and r["samples_per_s"] > 0 for r in steps)
    settings = json.loads((out / "config.json").read_text())
    assert settings["samples"] == {"train": 8, "val": 4} and settings["machine"]["packages"]["torch"]
    printed = capsys.readouterr().out
    assert "LR: q=5.00e-06 m=5.00e-05 d=5.00e-05" in printed and "mAP" in printed
    with pytest.raises(UserError, match="exists and is not empty"):
        main()
    monkeypatch.setattr(sys, "argv", ["train_map_detection.py", *flags, "--resume", "auto"])
    (out / "final_model.pth").unlink()
    main()
    assert (out / "final_model.pth").exists(), "a finished run only writes its end again"
    assert (out / "metrics.jsonl").read_text().splitlines() == [json.dumps(record) for record in records]


def test_tensorboard_gets_the_numbers_of_the_records(tmp_path, synthetic_world, caches, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, synthetic_world, caches)
    trainer.start(tmp_path, RunLog(tmp_path, tensorboard=True))
    trainer.run()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for kind, name in (("train", "loss"), ("train", "grad_norm_decoder"), ("val", "scene_std")):
        wanted = [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in records if r["kind"] == kind]
        assert [(event.step, event.value) for event in read.Scalars(f"{kind}/{name}")] == wanted and wanted
    assert [event.value for event in read.Scalars("val/result/mAP")] == [0.0, 0.0]

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="--tensorboard: .*pip install tensorboard"):
        RunLog(tmp_path, tensorboard=True)


def test_frozen_weights_do_not_change_and_trainable_ones_do(tmp_path, synthetic_world, caches):
    trainer = make_trainer(tmp_path, synthetic_world, caches)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train_epoch()
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert not torch.equal(before[name], parameter), name
        else:
            assert torch.equal(before[name], parameter), name
    assert trainer.optimizer.state.keys() == {p for p in trainer.model.parameters() if p.requires_grad}


def test_a_loss_that_is_not_finite_names_step_and_samples(tmp_path, synthetic_world, caches):
    trainer = make_trainer(tmp_path, synthetic_world, caches)
    with torch.no_grad():
        trainer.model.decoder.heads[0].classes[-1].bias.fill_(float("nan"))
    batch = next(iter(trainer.train_loader))
    with pytest.raises(FloatingPointError, match=f"step 7: .*not finite.*{batch['sample_tokens'][0]}"):
        trainer.train_step([batch], 7)


def test_a_gradient_that_is_not_finite_ends_fp32_and_is_skipped_and_counted_in_fp16(
    tmp_path, synthetic_world, caches
):
    def spoil(gradient):
        return gradient * float("inf")

    trainer = make_trainer(tmp_path / "fp32", synthetic_world, caches)
    trainer.model.decoder.references.register_hook(spoil)
    before = trainer.model.decoder.references.detach().clone()
    with pytest.raises(FloatingPointError, match="step 0: the gradient is not finite.*'decoder': (nan|inf)"):
        trainer.train_epoch()
    assert torch.equal(trainer.model.decoder.references, before)

    trainer = make_trainer(tmp_path / "fp16", synthetic_world, caches, "--precision", "fp16", "--epochs", "3")
    handle = trainer.model.decoder.references.register_hook(spoil)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train_epoch()
    assert trainer.overflows == 2 and trainer.step == 2
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    handle.remove()
    trainer.train_epoch()
    assert not torch.equal(trainer.model.decoder.references, before["decoder.references"])
    assert "overflows 2 " in (tmp_path / "fp16" / "train.log").read_text().splitlines()[1]


def test_a_validation_that_was_interrupted_is_made_up_for(tmp_path, synthetic_world, caches, monkeypatch):
    make_trainer(tmp_path / "whole", synthetic_world, caches).run()
    first = make_trainer(tmp_path / "halves", synthetic_world, caches)

    def validate(self=first):
        raise Interrupted(15)

    monkeypatch.setattr(first, "validate", validate)
    with pytest.raises(SystemExit) as ended:
        first.run()
    assert ended.value.code == 143
    path = tmp_path / "halves" / "checkpoint_epoch_1.pth"
    second = make_trainer(tmp_path / "halves", synthetic_world, caches, resume=path)
    second.run()
    assert_same_result(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.parametrize("split", [(1, 1, 8), (2, 1, 4), (1, 2, 4), (2, 2, 2), (4, 1, 2)])
def test_a_step_takes_the_same_samples_however_they_are_split(split):
    world, accumulation, batch_size = split
    steps = [[] for _ in range(3)]
    for rank in range(world):
        batches = GlobalBatches(27, batch_size, accumulation, 3, Ranks(rank, world))
        batches.set_position(epoch=5)
        found = list(batches)
        assert len(found) == len(batches) == 3 * accumulation
        for index, batch in enumerate(found):
            assert len(batch) == batch_size
            steps[index // accumulation] += batch
    one = GlobalBatches(27, 8, 1, 3, Ranks())
    one.set_position(epoch=5)
    assert [sorted(step) for step in steps] == [sorted(batch) for batch in one]
    assert len(set(sum(steps, []))) == 24


def test_the_order_of_samples_is_a_function_of_seed_and_epoch_and_can_be_entered_anywhere():
    sampler = GlobalBatches(20, 4, 1, 3, Ranks())
    first = list(sampler)
    assert sorted(sum(first, [])) == list(range(20)) and first == list(sampler)
    sampler.set_position(epoch=0, first_step=3)
    assert list(sampler) == first[3:] and len(sampler) == 2
    sampler.set_position(epoch=1)
    assert list(sampler) != first
    assert list(GlobalBatches(20, 4, 1, 4, Ranks())) != first
    with pytest.raises(UserError, match="--batch-size 3: a step takes 24 samples .2 ranks, 4 accumulated., .* has 20"):
        GlobalBatches(20, 3, 4, 0, Ranks(0, 2))


def run_script(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "train_map_detection.py", "--preset", "tiny", *flags], cwd=ROOT,
                          capture_output=True, text=True)


def one_line_error(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, synthetic_world, caches):
    world = str(synthetic_world)
    out = tmp_path / "out"
    one_line_error(run_script("--dataroot", "/no/such", "--output-dir", str(out)), "/no/such", "no such folder")
    one_line_error(run_script("--dataroot", world, "--gt-cache-train", str(caches["val"]), "--output-dir", str(out)),
                   str(caches["val"]), "expected train")
    one_line_error(run_script("--dataroot", world, "--output-dir", str(out), "--epochs", "2"),
                   "--warmup-steps 500", "the whole run has 4 steps")
    assert not out.exists(), "nothing half-written"


def test_a_broken_jpeg_names_its_sample(tmp_path, synthetic_world, caches):
    record = GTCache.open(caches["val"])[2]
    (tmp_path / "samples").symlink_to(synthetic_world / "samples")
    out = tmp_path / "out"
    flags = ("--dataroot", str(tmp_path), "--gt-cache-train", str(caches["train"]), "--gt-cache-val",
             str(caches["val"]), "--eval-untrained", "--num-workers", "1", "--warmup-steps", "0",
             "--output-dir", str(out))
    broken = synthetic_world / record.image_paths[3]
    whole = broken.read_bytes()
    try:
        broken.write_bytes(whole[: len(whole) // 2])
        one_line_error(run_script(*flags), record.image_paths[3], record.sample_token)
    finally:
        broken.write_bytes(whole)


@pytest.mark.parametrize(
    "flags",
    ["--batch-size 0", "--epochs 0", "--lr-decoder -1", "--lr-decoder nan", "--grad-clip 0", "--seed -1",
     "--segmentation-weight -1", "--mirror 1.5", "--fp16 --precision bf16", "--accumulation-steps 0",
     "--ema-decay 1", "--rank-timeout nan", "--resume auto", "--keep-last -1", "--lr-decoder inf",
     "--rank-timeout 1e10",
     pytest.param("--device cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"))],
)
def test_a_flag_that_cannot_be_meant_is_named(flags):
    with pytest.raises(UserError, match=flags.split()[0]):
        parse_args("", ["--preset", "tiny", *flags.split()])


@pytest.fixture
def resumable(tmp_path, synthetic_world, caches):
    """A trainer, a checkpoint of it, and what compares the two."""
    trainer = make_trainer(tmp_path, synthetic_world, caches)
    checkpoint = trainer.state([])
    path = tmp_path / "checkpoint_epoch_1.pth"

    def check(global_batch=4, **other):
        digests = {name: checkpoint[name] for name in ("train_digest", "val_digest")} | other
        return check_resumed_settings(path, checkpoint, trainer.args, trainer.config, digests, global_batch)

    return trainer, check


@pytest.mark.parametrize("flag, value", [("seed", 1), ("epochs", 3), ("precision", "bf16"), ("lr_decoder", 0.5),
                                         ("segmentation_weight", 2.0)])  # fmt: skip
def test_a_changed_setting_that_shapes_the_result_is_refused_unless_allowed(flag, value, resumable):
    trainer, check = resumable
    assert check() == []
    before = getattr(trainer.args, flag)
    setattr(trainer.args, flag, value)
    with pytest.raises(UserError, match=f"{flag} {before}, this run has {value};.*--allow-changed {flag}"):
        check()
    trainer.args.allow_changed = flag
    assert check() == [f"{flag} {before} -> {value}"]


def test_other_changes_are_listed_and_wrong_names_refused(resumable):
    trainer, check = resumable
    trainer.args.num_workers, trainer.args.log_interval = 7, 9
    assert check() == ["log_interval 1 -> 9", "num_workers 0 -> 7"]
    for name in ("train_digest", "val_digest"):
        with pytest.raises(UserError, match=f"{name} .* this run has 0ther"):
            check(**{name: "0ther"})
    with pytest.raises(UserError, match="a step took 4 samples, here it takes 6 .*--reshuffle"):
        check(global_batch=6)
    trainer.args.reshuffle = True
    check(global_batch=6)
    trainer.config = replace(trainer.config, num_instances=7)
    with pytest.raises(UserError, match="num_instances 5, this run has 7"):
        check()
    trainer.args.allow_changed = "lr"
    with pytest.raises(UserError, match="--allow-changed lr: no such setting; there are .*lr_decoder"):
        check()


def test_a_first_epoch_that_begins_again_has_no_untrained_model(tmp_path, synthetic_world, caches):
    first = make_trainer(tmp_path, synthetic_world, caches, "--batch-size", "2")
    first.train_epoch()
    first.epoch, first.steps_done, first.step, first.validated = 0, 1, 1, True  # as if stopped within the epoch
    first.save("checkpoint_epoch_1_step_1.pth")
    path = tmp_path / "checkpoint_epoch_1_step_1.pth"
    flags = ("--batch-size", "1", "--reshuffle", "--eval-untrained", "--epochs", "1")
    second = make_trainer(tmp_path, synthetic_world, caches, *flags, resume=path)
    assert (second.epoch, second.step) == (0, 0)
    validated = []
    second.validate = lambda: validated.append(second.epoch) or 0.0
    second.run()
    assert validated == [1]


def test_changes_that_were_allowed_are_made(tmp_path, synthetic_world, caches):
    first = make_trainer(tmp_path, synthetic_world, caches)
    first.train_epoch()
    first.save("checkpoint_epoch_1.pth")
    path = tmp_path / "checkpoint_epoch_1.pth"
    changed = ("--weight-decay", "0.5", "--precision", "fp16")
    second = make_trainer(tmp_path, synthetic_world, caches, *changed, resume=path)
    assert {group["weight_decay"] for group in second.optimizer.param_groups} == {0.5}
    assert second.scaler.is_enabled() and second.step == 2
    second.train_epoch()


def test_the_newest_checkpoint_stays_when_only_the_best_is_written(tmp_path, synthetic_world, caches):
    """A later one of another course, such as a damaged one, must not count as the newest."""
    (tmp_path / "checkpoint_epoch_2.pth").write_bytes(b"damaged")
    trainer = make_trainer(tmp_path, synthetic_world, caches, "--keep-last", "1", "--save-interval", "2")
    trainer.train_epoch()
    trainer.save("checkpoint_epoch_1.pth")
    (tmp_path / "checkpoint_epoch_2.pth.set_aside").rename(tmp_path / "checkpoint_epoch_2.pth")
    trainer.save("best_model.pth")
    assert (tmp_path / "checkpoint_epoch_1.pth").exists()


def test_a_step_to_save_after_that_ends_an_epoch_is_saved_too(tmp_path, synthetic_world, caches):
    make_trainer(tmp_path, synthetic_world, caches, "--save-every-steps", "2", "--save-interval", "5", "--epochs", "3",
                 "--keep-last", "0").run()
    assert sorted(path.name for path in tmp_path.glob("checkpoint_*")) == [
        f"checkpoint_epoch_{n}.pth" for n in (1, 2, 3)]


def test_a_step_of_other_size_begins_the_epoch_again(tmp_path, synthetic_world, caches):
    first = make_trainer(tmp_path / "first", synthetic_world, caches, "--batch-size", "2")
    first.epoch, first.steps_done, first.step = 1, 3, 7
    first.save("checkpoint_epoch_2_step_3.pth")
    path = tmp_path / "first" / "checkpoint_epoch_2_step_3.pth"
    second = make_trainer(tmp_path / "second", synthetic_world, caches, "--batch-size", "4", resume=path)
    assert (second.epoch, second.steps_done, second.step) == (1, 0, 2)


def test_the_flags_of_augmentation_reach_the_training_samples_alone(tmp_path, synthetic_world, caches):
    flags = ["--mirror", "0.25", "--rotation", "5", "--zoom", "0.125", "--photometric", "0.5", "--noisy-copies", "3"]
    trainer = make_trainer(tmp_path, synthetic_world, caches, *flags)
    assert trainer.train_loader.dataset.augment == AugmentConfig(
        mirror_probability=0.25, rotation_deg=5, zoom=0.125, brightness=0.5, contrast=0.5, saturation=0.5,
        noisy_copies=3,
    )  # fmt: skip
    assert trainer.val_loader.dataset.augment is None


def test_the_weight_of_the_segmentations_reaches_the_losses(tmp_path, synthetic_world, caches):
    trainer = make_trainer(tmp_path, synthetic_world, caches, "--segmentation-weight", "3")
    losses = {"loss_ground": torch.tensor(1.0), "loss_cls_0": torch.tensor(1.0)}
    assert trainer.train_step.criterion.total(losses).item() == 5.0


@pytest.mark.parametrize("flags", ["--mirror 1.5", "--photometric -0.1", "--rotation 46", "--zoom 0.95",
                                   "--noisy-copies 1000"])  # fmt: skip
def test_augmentation_that_cannot_be_meant_is_refused(flags):
    with pytest.raises(UserError, match=f"{flags.split()[0]} .*: must be between 0 and "):
        parse_args("", flags.split())
