import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models.flags
from data.gt_cache import GTCache
from tests.micro import micro_config
from train_map_detection import EpochSampler, Trainer, build_loader, check_resumed_settings, main, parse_args
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.run_log import RunLog

ROOT = Path(__file__).resolve().parents[1]


def make_trainer(folder: Path, world: Path, caches: dict[str, Path], *flags: str) -> Trainer:
    """A trainer of the micro model on the tiny world, in-process."""
    folder.mkdir(parents=True, exist_ok=True)
    args = parse_args(["--preset", "tiny", "--dataroot", str(world), "--num-workers", "0", "--batch-size", "3",
                       "--epochs", "2", "--warmup-steps", "2", "--lr-decoder", "1e-3", "--log-interval", "1",
                       "--mirror", "0.5", "--precision", "fp32", *flags])
    config = micro_config(decoder=replace(micro_config().decoder, dropout=0.1))
    loaders = [build_loader(args, config, GTCache.open(caches[s]), train=s == "train") for s in ("train", "val")]
    return Trainer(args, config, *loaders, RunLog(folder), folder)


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_two_epochs_equal_one_and_a_resumed_one_bit_for_bit(precision, tmp_path, synthetic_world, caches):
    flags = ("--precision", precision)
    make_trainer(tmp_path / "whole", synthetic_world, caches, *flags).run()
    first = make_trainer(tmp_path / "halves", synthetic_world, caches, *flags)
    first.train_epoch()
    first.epoch = 1
    torch.save(first.state(), tmp_path / "halves" / "checkpoint_epoch_1.pth")
    torch.manual_seed(99)  # another process would start anywhere
    second = make_trainer(tmp_path / "halves", synthetic_world, caches, *flags)
    path = str(tmp_path / "halves" / "checkpoint_epoch_1.pth")
    second.restore(load_checkpoint(path), path)
    second.run()
    whole, halves = (weights(tmp_path / name / "final_model.pth") for name in ("whole", "halves"))
    assert whole["step"] == halves["step"] == 6
    for name, value in whole["model_state_dict"].items():
        assert torch.equal(value, halves["model_state_dict"][name]), name
    for key, value in whole["optimizer_state_dict"]["state"].items():
        assert torch.equal(value["exp_avg"], halves["optimizer_state_dict"]["state"][key]["exp_avg"])
    assert whole["scheduler_state_dict"] == halves["scheduler_state_dict"]


def test_a_run_leaves_what_the_design_says(tmp_path, synthetic_world, caches, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(models.flags, "PRESETS", {"tiny": micro_config()})
    flags = ["--preset", "tiny", "--dataroot", str(synthetic_world), "--epochs", "2", "--num-workers", "1",
             "--log-interval", "1", "--eval-untrained", "--output-dir", str(out)]
    monkeypatch.setattr(sys, "argv", ["train_map_detection.py", *flags])
    main()
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "train.log", "metrics.jsonl", "checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth",
                     "best_model.pth", "final_model.pth"}
    checkpoint = weights(out / "checkpoint_epoch_2.pth")
    assert {"epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "args"} <= checkpoint.keys()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records if r["kind"] == "val"] == [0, 1, 2]
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4]
    printed = capsys.readouterr().out
    assert "LR: q=2.00e-08 m=2.00e-07 d=2.00e-07" in printed and "mAP" in printed
    monkeypatch.setattr(sys, "argv", ["train_map_detection.py", *flags])
    with pytest.raises(UserError, match="exists and is not empty"):
        main()


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
    with pytest.raises(FloatingPointError, match=f"step 0: .*not finite.*{batch['sample_tokens'][0]}"):
        trainer.train_step(batch)


def test_the_order_of_samples_is_a_function_of_seed_and_epoch():
    sampler = EpochSampler(20, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(20)) and first == list(sampler)
    sampler.epoch = 1
    assert list(sampler) != first
    assert list(EpochSampler(20, seed=4)) != first


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
    one_line_error(run_script("--dataroot", world, "--pc-range", "100x50", "--gt-cache-train", str(caches["train"]),
                              "--output-dir", str(out)), str(caches["train"]), "pc_range")
    assert not out.exists(), "nothing half-written"


def test_a_broken_jpeg_names_its_sample(tmp_path, synthetic_world, caches):
    record = GTCache.open(caches["val"])[2]
    (tmp_path / "samples").symlink_to(synthetic_world / "samples")
    out = tmp_path / "out"
    flags = ("--dataroot", str(tmp_path), "--gt-cache-train", str(caches["train"]), "--gt-cache-val",
             str(caches["val"]), "--eval-untrained", "--num-workers", "1", "--output-dir", str(out))
    broken = synthetic_world / record.image_paths[3]
    whole = broken.read_bytes()
    try:
        broken.write_bytes(whole[: len(whole) // 2])
        one_line_error(run_script(*flags), record.image_paths[3], record.sample_token)
    finally:
        broken.write_bytes(whole)


def test_a_checkpoint_of_another_model_is_refused_at_resume(tmp_path, synthetic_world, caches):
    trainer = make_trainer(tmp_path / "micro", synthetic_world, caches)
    path = tmp_path / "micro" / "checkpoint_epoch_1.pth"
    torch.save(trainer.state(), path)
    result = run_script("--dataroot", str(synthetic_world), "--resume", str(path))
    one_line_error(result, str(path), "was trained with")


@pytest.mark.parametrize(
    "flags",
    ["--batch-size 0", "--epochs 0", "--lr-decoder -1", "--lr-decoder nan", "--grad-clip 0", "--seed -1",
     "--mirror 1.5", "--fp16 --precision bf16"],
)
def test_a_flag_that_cannot_be_meant_is_named(flags):
    with pytest.raises(UserError, match=flags.split()[0]):
        parse_args(["--preset", "tiny", *flags.split()])


@pytest.mark.parametrize("flag, value", [("seed", 1), ("batch_size", 2), ("precision", "bf16"), ("lr_decoder", 0.5)])
def test_a_resumption_with_a_setting_that_shapes_the_result_is_refused(flag, value, tmp_path, synthetic_world, caches):
    trainer = make_trainer(tmp_path, synthetic_world, caches)
    checkpoint = trainer.state()
    check_resumed_settings(checkpoint, trainer.config, trainer.args)
    trainer.args.resume = "run/checkpoint_epoch_1.pth"
    setattr(trainer.args, flag, value)
    with pytest.raises(UserError, match=f"{flag} .*this run has {value}"):
        check_resumed_settings(checkpoint, trainer.config, trainer.args)
