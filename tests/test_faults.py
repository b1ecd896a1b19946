"""Faults that happen to one training process, and what is left after them."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from data.gt_cache import GTCache
from tests.training_runs import assert_same_result, metrics, one_error_line, snapshot, start, train
from utils.checkpoint import load_checkpoint
from utils.checkpoint_folder import checkpoints_in

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="faults are made with Linux's means")
STEPS = ("--batch-size", "2")  # 4 an epoch, 8 in all


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, synthetic_world: Path, caches: dict[str, Path]) -> Path:
    """Folder of a run that nothing has disturbed, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("faults") / "whole"
    codes, said = train(synthetic_world, folder, *STEPS, "--save-every-steps", "1")
    assert codes == [0], said
    assert [r["step"] for r in metrics(folder) if r["kind"] == "train"] == list(range(1, 9))
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run that has lost its end."""
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    (folder / "final_model.pth").unlink()
    return folder


def goes_on_to(whole: Path, world: Path, folder: Path, *flags: str, **environment: str) -> str:
    """Resume the run of this folder to the end, which is that of the undisturbed one; what it said."""
    codes, said = train(world, folder, *STEPS, "--resume", "auto", *flags, **environment)
    assert codes == [0], said
    assert_same_result(folder, whole)
    return said


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints_in(folder)]


def wait_until_stopped(pid: int) -> None:
    """Return once SIGSTOP has taken effect. Raises FileNotFoundError when the process ends instead."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
        time.sleep(0.05)


def no_remains(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize(
    "fault, workers, code",
    [("SIGTERM", "0", 143), ("SIGINT", "0", 130), ("SIGHUP", "0", 129), ("SIGINT-to-group", "1", 130)],
)
def test_a_signal_in_mid_epoch(fault, workers, code, whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    codes, said = train(synthetic_world, folder, *STEPS, "--num-workers", workers, FAULTS=f"{fault}:0:1")
    assert codes == [code] and "Traceback" not in said, said
    assert names(folder) == ["checkpoint_epoch_1_step_2.pth"], "the step is finished"
    signal_name = fault.removesuffix("-to-group")
    assert f"interrupted by {signal_name}: checkpoint_epoch_1_step_2.pth is saved" in (folder / "train.log").read_text()
    goes_on_to(whole, synthetic_world, folder)


def test_a_kill_after_the_last_save(whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    assert train(synthetic_world, folder, *STEPS, "--save-every-steps", "2", FAULTS="SIGKILL:0:3")[0] == [-9]
    assert names(folder) == ["checkpoint_epoch_1_step_2.pth"] and len(metrics(folder)) == 3
    goes_on_to(whole, synthetic_world, folder)


def test_a_signal_during_validation(whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    codes, said = train(synthetic_world, folder, *STEPS, FAULTS="SIGTERM:0:validation")
    assert codes == [143], said
    assert not load_checkpoint(folder / "checkpoint_epoch_1.pth")["validated"]
    assert [record["kind"] for record in metrics(folder)] == ["train"] * 4
    goes_on_to(whole, synthetic_world, folder)


@pytest.mark.parametrize("fault, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_before_the_first_step_ends_the_run_at_once(fault, code, whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    codes, said = train(synthetic_world, folder, *STEPS, FAULTS=f"{fault}:0:start")
    assert (codes, said) == ([code], "interrupted\n")
    goes_on_to(whole, synthetic_world, folder)


def test_a_finished_run_without_its_checkpoints_does_not_begin_anew(copy, whole, synthetic_world):
    shutil.copy(whole / "final_model.pth", copy)
    for path in checkpoints_in(copy):
        path.unlink()
    (copy / "run.lock").unlink()
    before = snapshot(copy)
    codes, said = train(synthetic_world, copy, *STEPS, "--resume", "auto")
    assert codes == [2]
    one_error_line(said, "holds final_model.pth but no checkpoint_epoch_*.pth", f"--resume {copy / 'final_model.pth'}")
    assert {name: file for name, file in snapshot(copy).items() if name != "run.lock"} == before
    codes, said = train(synthetic_world, copy, *STEPS, "--resume", str(copy / "final_model.pth"))
    assert codes == [0] and "after step 8" in said, said
    assert_same_result(copy, whole)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unreadable_image_in_the_second_epoch(workers, whole, synthetic_world, caches, tmp_path):
    world, folder = tmp_path / "world", tmp_path / "run"
    shutil.copytree(synthetic_world, world)
    record = GTCache.open(caches["train"])[5]
    image = world / record.image_paths[2]
    content = image.read_bytes()
    codes, said = train(world, folder, *STEPS, "--num-workers", workers, FAULTS="break-file:0:3",
                        FILE_TO_BREAK=str(image))
    assert codes == [2]
    error = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and str(image) in error[0] and record.sample_token in error[0], said
    assert names(folder) == ["checkpoint_epoch_1.pth"]
    assert load_checkpoint(folder / "checkpoint_epoch_1.pth")["validated"]
    image.write_bytes(content)
    goes_on_to(whole, world, folder, "--num-workers", workers)


def test_a_full_disk_that_has_space_again_later(whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    codes, said = train(synthetic_world, folder, *STEPS, "--save-every-steps", "1", "--keep-last", "2",
                        FAULTS="no-space-for-checkpoints:0:1,space-again:0:5")
    assert codes == [0] and "Traceback" not in said, said
    log = (folder / "train.log").read_text()
    for name in ("checkpoint_epoch_1_step_2.pth", "checkpoint_epoch_1.pth", "best_model.pth"):
        assert re.search(rf"^warning: no checkpoint: .*/{name}: cannot be written \(.*File too large", log, re.M), name
    assert names(folder) == ["checkpoint_epoch_2_step_3.pth", "checkpoint_epoch_2.pth"] and no_remains(folder)
    assert_same_result(folder, whole)
    assert (folder / "best_model.pth").exists()


def test_a_disk_without_space_for_a_log_line(whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    codes, _ = train(synthetic_world, folder, *STEPS, "--save-every-steps", "1", FAULTS="no-space:0:1,space-again:0:5")
    assert codes == [0]
    steps = [record["step"] for record in metrics(folder) if record["kind"] == "train"]
    assert steps == [1, 6, 7, 8], "whole lines alone"
    finals = [load_checkpoint(each / "final_model.pth") for each in (folder, whole)]
    assert finals[0]["step"] == finals[1]["step"] and finals[0]["num_records"] == len(metrics(folder))


def test_a_full_disk_at_the_end(whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    codes, said = train(synthetic_world, folder, *STEPS, "--save-every-steps", "1",
                        FAULTS="no-space-for-checkpoints:0:6")
    assert codes == [2]
    one_error_line(said, "final_model.pth", "cannot be written", "free some space")
    assert names(folder)[-1] == "checkpoint_epoch_2_step_2.pth" and no_remains(folder)
    goes_on_to(whole, synthetic_world, folder)


def test_a_signal_while_the_disk_is_full(whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    codes, said = train(synthetic_world, folder, *STEPS, "--save-every-steps", "1",
                        FAULTS="no-space-for-checkpoints:0:1,SIGTERM:0:2")
    assert codes == [2]
    one_error_line(said, "checkpoint_epoch_1_step_3.pth", "cannot be written")
    assert names(folder) == ["checkpoint_epoch_1_step_1.pth"] and no_remains(folder)
    goes_on_to(whole, synthetic_world, folder)


def test_damaged_checkpoints_are_reported_and_passed_over(copy, whole, synthetic_world):
    cut, flipped = copy / "checkpoint_epoch_2.pth", copy / "checkpoint_epoch_2_step_3.pth"
    os.truncate(cut, cut.stat().st_size // 2)
    tensor = max(load_checkpoint(flipped)["model_state_dict"].values(), key=lambda value: value.numel())
    content = bytearray(flipped.read_bytes())
    content[content.index(tensor.numpy().tobytes()) + 1001] ^= 0x10
    flipped.write_bytes(content)
    goes_on_to(whole, synthetic_world, copy)
    log = (copy / "train.log").read_text()
    assert f"{cut}: not a readable checkpoint" in log and f"{flipped}: altered since it was written" in log
    assert f"going on from {copy / 'checkpoint_epoch_2_step_2.pth'}, after step 6" in log


def test_a_clock_that_jumps(copy, whole, synthetic_world):
    for path in copy.glob("*epoch_2*"):
        path.unlink()
    for age, path in enumerate(checkpoints_in(copy)):
        os.utime(path, (1e9 - 1e6 * age,) * 2)  # the oldest is the newest by its date
    said = goes_on_to(whole, synthetic_world, copy, CLOCK_JUMPS="1")
    assert f"going on from {copy / 'checkpoint_epoch_1.pth'}, after step 4" in said
    told = re.findall(r"(\S+) s/step \(data (\S+)\) (\S+) samples/s .* left (.*)", said)
    assert len(told) == 4
    for seconds, waited, speed, left in told:
        assert 0 <= float(waited) <= float(seconds) < 60 and float(speed) > 0 and re.fullmatch(r"0:0\d:\d\d", left)


def test_a_folder_in_use(whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    first = start(synthetic_world, folder, *STEPS, "--save-every-steps", "2", FAULTS="SIGSTOP:0:3")
    try:
        wait_until_stopped(first.processes[0].pid)
        before = snapshot(folder)
        codes, said = train(synthetic_world, folder, *STEPS, "--resume", "auto")
        assert codes == [2]
        one_error_line(said, str(folder), f"in use by process {first.processes[0].pid} on host")
        codes, said = train(synthetic_world, folder, *STEPS)
        assert codes == [2]
        one_error_line(said, str(folder))
        assert snapshot(folder) == before
    finally:
        first.kill()
    goes_on_to(whole, synthetic_world, folder)


def test_a_worker_killed_for_its_memory(whole, synthetic_world, tmp_path):
    folder = tmp_path / "run"
    codes, said = train(synthetic_world, folder, *STEPS, "--num-workers", "2", "--save-every-steps", "1",
                        FAULTS="kill-worker:0:1")
    assert codes == [1]
    assert re.search(r"DataLoader worker \(pid.* (is killed by signal: Killed|exited unexpectedly)", said), said
    assert names(folder)[0] == "checkpoint_epoch_1_step_1.pth" and no_remains(folder)
    goes_on_to(whole, synthetic_world, folder)
