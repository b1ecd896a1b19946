"""utils/run_log.py: what a run says survives broken places to say it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from utils.run_log import RunLog, collected_messages, drop_later_records, progress_bar

ROOT = Path(__file__).resolve().parents[1]


def test_records_are_whole_lines_and_what_is_not_finite_is_null(tmp_path):
    log = RunLog(tmp_path)
    log.record(kind="train", step=1, loss=float("nan"), lr={"decoder": float("inf")}, sizes=[1.0, float("nan")])
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "kind": "train", "step": 1, "loss": None, "lr": {"decoder": None}, "sizes": [1.0, None]}
    assert log.num_records == 1
    assert RunLog(None).record(kind="train") is None


@pytest.mark.parametrize("content, wanted, kept", [
    ("1\n2\n3\n", 2, "1\n2\n"), ("1\n2\n", 2, "1\n2\n"), ("1\n2", 2, "1\n"), ("1\n", 5, "1\n"), ("", 0, "")])
def test_later_records_and_torn_lines_are_dropped(content, wanted, kept, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(content)
    assert drop_later_records(tmp_path, wanted) == kept.count("\n")
    assert (tmp_path / "metrics.jsonl").read_text() == kept
    assert drop_later_records(tmp_path / "absent", 3) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_terminal_or_disk_that_takes_no_lines_does_not_end_the_run(tmp_path):
    program = (f"from pathlib import Path; from utils.run_log import RunLog; log = RunLog(Path({str(tmp_path)!r}))\n"
               "for n in range(3): log.line(f'line {n}')")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=full)
    assert done.returncode == 0
    assert (tmp_path / "train.log").read_text() == "line 0\nline 1\nline 2\n"


def test_messages_of_the_named_loggers_are_collected_and_only_in_the_block():
    import logging

    with collected_messages("models", "utils") as messages:
        logging.getLogger("models.llm").info("loaded")
        logging.getLogger("utils.x").warning("%s passed over", "a.pth")
        logging.getLogger("data").warning("not asked for")
    logging.getLogger("models").info("later")
    assert messages == ["loaded", "a.pth passed over"]


@pytest.mark.parametrize("on_terminal, rank, shown", [(True, None, True), (True, "0", True), (True, "1", False),
                                                      (False, None, False)])
def test_one_rank_alone_draws_a_bar(on_terminal, rank, shown, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal, raising=False)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with progress_bar(3, "train") as bar:
        assert bar.disable == (not shown)
