"""Faults that happen to one of two ranks or to their launcher, and what is left after them."""

import re
import shutil
from pathlib import Path

import pytest

from data.gt_cache import GTCache
from tests.training_runs import (
    assert_same,
    assert_same_result,
    assert_same_up_to_rounding,
    metrics,
    one_error_line,
    start,
    torchrun,
    train,
)
from training.sampler import GlobalBatches
from utils.checkpoint import load_checkpoint
from utils.checkpoint_folder import checkpoints_in, newest_good
from utils.distributed import Ranks

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="faults are made with Linux's means")
STEPS = ("--batch-size", "1", "--save-every-steps", "1")  # 4 an epoch, 8 in all
LARGER = ("--batch-size", "2", "--save-every-steps", "1")  # 2 an epoch, 4 in all


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, synthetic_world: Path, caches: dict[str, Path]) -> Path:
    """Folder of a run of two ranks that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("faults") / "whole"
    codes, said = train(synthetic_world, folder, *STEPS, ranks=2)
    assert codes == [0, 0], said
    return folder


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory: pytest.TempPathFactory, synthetic_world: Path, caches: dict[str, Path]) -> Path:
    """The same without dropout, which differs between splits of a batch, and with two samples on each rank."""
    folder = tmp_path_factory.mktemp("faults") / "larger"
    codes, said = train(synthetic_world, folder, *LARGER, ranks=2, MICRO_DROPOUT="0")
    assert codes == [0, 0], said
    return folder


@pytest.fixture
def cut_short(without_dropout: Path, tmp_path: Path) -> Path:
    """A copy of that run that has only come to its first step."""
    folder = tmp_path / "copy"
    shutil.copytree(without_dropout, folder)
    for path in set(folder.glob("*.pth")) - {folder / "checkpoint_epoch_1_step_1.pth"}:
        path.unlink()
    return folder


def test_torchrun_is_asked_to_end(whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    code, said = torchrun(synthetic_world, folder, "--batch-size", "1", FAULTS="SIGTERM-to-launcher:0:1")
    assert code != 0
    assert [path.name for path in checkpoints_in(folder)] == ["checkpoint_epoch_1_step_2.pth"], said
    assert "interrupted by SIGTERM: checkpoint_epoch_1_step_2.pth is saved" in said
    codes, said = train(synthetic_world, folder, *STEPS, "--resume", "auto", ranks=2)
    assert codes == [0, 0], said
    assert_same_result(folder, whole)


def test_torchrun_starts_a_killed_rank_again(whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    code, said = torchrun(synthetic_world, folder, *STEPS, "--resume", "auto", restarts=1, FAULTS="SIGKILL:1:5")
    assert code == 0, said
    log = (folder / "train.log").read_text()
    assert f"going on from {folder / 'checkpoint_epoch_2_step_1.pth'}, after step 5" in log
    assert_same_result(folder, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_that_reaches_one_rank_during_validation(rank, whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    run = start(synthetic_world, folder, *STEPS, ranks=2, FAULTS=f"SIGTERM:{rank}:validation")
    assert run.wait() == [143, 143], run.said(0) + run.said(1)
    assert not load_checkpoint(folder / "checkpoint_epoch_1.pth")["validated"]
    codes, said = train(synthetic_world, folder, *STEPS, "--resume", "auto", ranks=2)
    assert codes == [0, 0], said
    assert_same_result(folder, whole)


@pytest.mark.parametrize("fault, rank", [("SIGKILL", 0), ("SIGKILL", 1), ("SIGSTOP", 0), ("SIGSTOP", 1)])
def test_a_rank_that_dies_or_stalls_ends_the_other_in_time(fault, rank, synthetic_world, caches, tmp_path):
    folder = tmp_path / "run"
    run = start(synthetic_world, folder, *STEPS, "--rank-timeout", "15", ranks=2, FAULTS=f"{fault}:{rank}:2")
    try:
        other = run.processes[1 - rank]
        other.join(60)
        assert other.exitcode == 1, run.said(1 - rank)
        said = run.said(1 - rank)
        assert re.search("Timed out waiting" if fault == "SIGSTOP" else "Connection (closed|reset) by peer", said), said
    finally:
        run.kill()
    path, _ = newest_good(folder)
    assert path.name == "checkpoint_epoch_1_step_2.pth"


@pytest.mark.parametrize("fault", ["nan", "nan-gradient"])
def test_a_nan_in_one_rank_ends_all_by_name(fault, whole, synthetic_world, caches, tmp_path):
    folder = tmp_path / "run"
    run = start(synthetic_world, folder, *STEPS, ranks=2, FAULTS=f"{fault}:1:2")
    assert run.wait() == [1, 1]
    batch = list(GlobalBatches(8, 1, 1, 0, Ranks(1, 2)))[2]
    token = GTCache.open(caches["train"])[batch[0]].sample_token
    for rank in (0, 1):
        last = run.said(rank).splitlines()[-1]
        assert last.startswith("FloatingPointError: step 2: ") and token in last, last
        assert fault == "nan-gradient" or "rank 1: " in last, last
    path, checkpoint = newest_good(folder)
    assert path.name == "checkpoint_epoch_1_step_2.pth" and len(metrics(folder)) == 2
    assert_same(checkpoint["model_state_dict"], load_checkpoint(whole / path.name)["model_state_dict"], path.name)


def test_an_unreadable_image_on_one_rank_ends_both(synthetic_world, caches, tmp_path):
    world = tmp_path / "world"
    shutil.copytree(synthetic_world, world)
    batch = list(GlobalBatches(8, 1, 1, 0, Ranks(1, 2)))[2]
    record = GTCache.open(caches["train"])[batch[0]]
    image = world / record.image_paths[4]
    run = start(world, tmp_path / "run", *STEPS, "--rank-timeout", "15", ranks=2, FAULTS="break-file:0:0",
                FILE_TO_BREAK=str(image))
    codes = run.wait()
    assert codes[1] == 2 and codes[0] != 0
    one_error_line(run.said(1), str(image), record.sample_token)


def test_one_rank_goes_on_for_two_with_the_same_global_batch(cut_short, without_dropout, synthetic_world):
    codes, said = train(synthetic_world, cut_short, "--batch-size", "4", "--resume", "auto", MICRO_DROPOUT="0")
    assert codes == [0], said
    assert "changed since the checkpoint: batch_size 2 -> 4" in said and "after step 1" in said
    finals = [load_checkpoint(folder / "final_model.pth") for folder in (cut_short, without_dropout)]
    assert finals[0]["step"] == finals[1]["step"] == 4
    assert_same_up_to_rounding(*(each["model_state_dict"] for each in finals))
    assert len(metrics(cut_short)) == len(metrics(without_dropout))


def test_another_global_batch_needs_a_reshuffle(cut_short, synthetic_world):
    flags = ("--batch-size", "2", "--resume", "auto")
    before = {path.name: path.read_bytes() for path in cut_short.iterdir() if path.name != "run.lock"}
    codes, said = train(synthetic_world, cut_short, *flags, MICRO_DROPOUT="0")
    assert codes == [2]
    one_error_line(said, "checkpoint_epoch_1_step_1.pth", "a step took 4 samples, here it takes 2", "--reshuffle")
    assert {path.name: path.read_bytes() for path in cut_short.iterdir() if path.name != "run.lock"} == before
    codes, said = train(synthetic_world, cut_short, *flags, "--reshuffle", MICRO_DROPOUT="0")
    assert codes == [0], said
    final = load_checkpoint(cut_short / "final_model.pth")
    assert final["epoch"] == 2 and final["step"] == 8 and final["global_batch"] == 2
