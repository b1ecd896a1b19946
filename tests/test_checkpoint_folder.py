"""The checkpoints of a run's folder: names, order, the newest good one, removal."""

import logging
import os
import random
import subprocess
import sys

import pytest

from tests.test_checkpoint_faults import made_checkpoint
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.checkpoint_folder import checkpoint_name, checkpoints_in, newest_good, remove_old, set_aside_later
from utils.errors import UserError

IN_ORDER = [
    "checkpoint_epoch_1_step_0.pth", "checkpoint_epoch_1_step_90.pth", "checkpoint_epoch_1_step_100.pth",
    "checkpoint_epoch_1.pth", "checkpoint_epoch_2_step_7.pth", "checkpoint_epoch_9.pth", "checkpoint_epoch_10.pth",
]  # fmt: skip


def names(paths) -> list[str]:
    return [path.name for path in paths]


def save_all(folder, files=IN_ORDER) -> None:
    """Checkpoints that say their place in the order as their step."""
    for step, name in enumerate(files):
        save_checkpoint(made_checkpoint(step), folder / name)


def damage(path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_names_say_epoch_and_step():
    assert checkpoint_name(3, 7, 20) == "checkpoint_epoch_3_step_7.pth"
    assert checkpoint_name(3, 20, 20) == "checkpoint_epoch_3.pth"
    assert checkpoint_name(1, 0, 20) == "checkpoint_epoch_1_step_0.pth"
    for place in ((0, 1, 20), (1, 21, 20), (1, -1, 20)):
        with pytest.raises(ValueError, match="no such place"):
            checkpoint_name(*place)


def test_the_order_is_that_of_the_names_whatever_the_clock_says(tmp_path):
    others = ["best_model.pth", "final_model.pth", "checkpoint_epoch_3.pth.set_aside", "checkpoint_epoch_x.pth",
              "checkpoint_epoch_3_step_.pth", "checkpoint_epoch_03.pth", ".checkpoint_epoch_4.pth.1.tmp",
              "checkpoint_epoch_4.pth~"]
    (tmp_path / "checkpoint_epoch_5.pth").mkdir()
    rng = random.Random(0)
    for name in rng.sample(IN_ORDER + others, k=len(IN_ORDER + others)):
        (tmp_path / name).touch()
        time = rng.randrange(2**31)
        os.utime(tmp_path / name, (time, time))
    assert names(checkpoints_in(tmp_path)) == IN_ORDER
    assert checkpoints_in(tmp_path / "none") == []


def test_the_newest_is_taken_and_of_damaged_ones_the_one_before(tmp_path, caplog):
    assert newest_good(tmp_path / "none") is None and newest_good(tmp_path) is None
    save_all(tmp_path)
    path, checkpoint = newest_good(tmp_path)
    assert path == tmp_path / IN_ORDER[-1] and checkpoint["step"] == len(IN_ORDER) - 1
    assert not caplog.messages
    damage(tmp_path / IN_ORDER[-1])
    data = bytearray((tmp_path / IN_ORDER[-2]).read_bytes())
    data[data.index(b"\x00\x00\xa0\x40" * 1000) + 2001] ^= 16  # one bit of the weights, which are all 5.0
    (tmp_path / IN_ORDER[-2]).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        path, checkpoint = newest_good(tmp_path)
    assert path == tmp_path / IN_ORDER[-3] and checkpoint["step"] == len(IN_ORDER) - 3
    for message, name in zip(caplog.messages, IN_ORDER[:-3:-1], strict=True):
        assert message.startswith(str(tmp_path / name)) and "\n" not in message


def test_a_folder_of_damaged_checkpoints_is_not_an_empty_one(tmp_path):
    save_all(tmp_path, IN_ORDER[:2])
    for path in checkpoints_in(tmp_path):
        damage(path)
    with pytest.raises(UserError, match="none of its 2 checkpoints .*_step_90.pth: not a readable.*--output-dir"):
        newest_good(tmp_path)


def test_what_comes_after_the_checkpoint_of_a_resumption_is_set_aside(tmp_path):
    save_all(tmp_path)
    save_checkpoint(made_checkpoint(3), tmp_path / "best_model.pth")
    damage(tmp_path / IN_ORDER[-1])
    path, _ = newest_good(tmp_path)
    assert names(set_aside_later(path)) == ["checkpoint_epoch_10.pth.set_aside"]
    remove_old(tmp_path, keep_last=1)
    assert newest_good(tmp_path)[0] == path, "the damaged one does not count"
    save_all(tmp_path)
    # A resumption from best_model.pth gives the name of its place, at which no file need be:
    moved = set_aside_later(tmp_path / "checkpoint_epoch_2_step_3.pth")
    assert names(moved) == [f"{name}.set_aside" for name in IN_ORDER[4:]]
    assert load_checkpoint(moved[0])["step"] == 4
    assert names(checkpoints_in(tmp_path)) == IN_ORDER[:4] and (tmp_path / "best_model.pth").is_file()
    with pytest.raises(ValueError, match="best_model.pth: the name says no place"):
        set_aside_later(tmp_path / "best_model.pth")


@pytest.mark.parametrize("keep_last", [1, 3, 7, 20])
def test_all_but_the_newest_are_removed(keep_last, tmp_path):
    kept = ["best_model.pth", "final_model.pth", "config.json", "checkpoint_epoch_3.pth.set_aside"]
    for name in [*IN_ORDER, *kept]:
        (tmp_path / name).touch()
    remove_old(tmp_path, keep_last)
    assert sorted(os.listdir(tmp_path)) == sorted(IN_ORDER[-keep_last:] + kept)


def test_zero_keeps_all(tmp_path):
    for name in IN_ORDER:
        (tmp_path / name).touch()
    remove_old(tmp_path, 0)
    assert names(checkpoints_in(tmp_path)) == IN_ORDER


def test_half_written_files_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    gone = [f".checkpoint_epoch_1.pth.{dead.pid}.tmp", f".best_model.pth.{dead.pid}.tmp",
            f".checkpoint_epoch_2_step_3.pth.{os.getpid()}.tmp", f".final_model.pth.{10**12}.tmp"]
    kept = [f".checkpoint_epoch_1.pth.{alive.pid}.tmp", ".checkpoint_epoch_1.pth.1.tmp", f".notes.{dead.pid}.tmp",
            ".checkpoint_epoch_1.pth.tmp"]
    try:
        for name in gone + kept:
            (tmp_path / name).touch()
        remove_old(tmp_path, 0)
        assert sorted(os.listdir(tmp_path)) == sorted(kept)
    finally:
        alive.communicate(b"\n")


def test_what_cannot_be_deleted_is_reported_and_nothing_more(tmp_path, monkeypatch, caplog):
    for name in IN_ORDER:
        (tmp_path / name).touch()
    unlink = os.unlink

    def forbidden(path, **options):
        if str(path).endswith(IN_ORDER[1]):
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", forbidden)
    with caplog.at_level(logging.WARNING):
        remove_old(tmp_path, 1)
    assert names(checkpoints_in(tmp_path)) == [IN_ORDER[1], IN_ORDER[-1]]
    assert caplog.messages == [f"{tmp_path / IN_ORDER[1]}: cannot be deleted (Permission denied); "
                               "it takes up space until you do"]
