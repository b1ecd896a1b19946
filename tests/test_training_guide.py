"""TRAINING_GUIDE.md says what the code does: flags, picture, links, names in the log."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tools import flag_table, plot_schedule
from tools.flag_table import BEGIN, END, flag_tables
from tools.plot_schedule import draw_schedule
from training.flags import build_parser, parse_args
from training.resume import RESULT_FLAGS
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "TRAINING_GUIDE.md").read_text()


def test_the_flag_table_is_that_of_the_parser_of_training(monkeypatch):
    monkeypatch.delenv("NUSCENES_DATAROOT", raising=False)
    table = flag_tables(build_parser())
    assert GUIDE.split(BEGIN)[1].split(END)[0].strip() == table.strip(), "python tools/flag_table.py --write"
    flags = {name.replace("-", "_") for name in re.findall(r"^\| `--([a-z0-9-]+)", table, re.MULTILINE)}
    assert flags == set(vars(parse_args("", [])))
    assert "| `--epochs` | `24` |" in table and "| `--lr-qformer` | `1e-5` |" in table
    assert "| `--precision` | fp16 on a GPU, fp32 on a CPU |" in table and "| `--shard-llm` | off |" in table


def call(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    """The tool's main in this process, which has torch already."""
    monkeypatch.delenv("NUSCENES_DATAROOT", raising=False)
    monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, flags)])
    tool.main()


def test_the_tool_finds_and_mends_a_table_that_is_not_true(tmp_path, monkeypatch):
    guide = tmp_path / "guide.md"
    guide.write_text(GUIDE.replace("| `--epochs` | `24` |", "| `--epochs` | `12` |"))
    with pytest.raises(UserError, match="guide.md: .*--write"):
        call(flag_table, monkeypatch, "--check", "--guide", guide)
    call(flag_table, monkeypatch, "--write", "--guide", guide)
    assert guide.read_text() == GUIDE
    call(flag_table, monkeypatch, "--check", "--guide", guide)


@pytest.mark.parametrize("text", ["nothing\n", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}{END}{BEGIN}{END}"])
def test_the_tool_refuses_a_text_without_one_place_for_the_table(text, tmp_path, monkeypatch):
    guide = tmp_path / "guide.md"
    guide.write_text(text)
    with pytest.raises(UserError, match="guide.md: "):
        call(flag_table, monkeypatch, "--write", "--guide", guide)
    assert guide.read_text() == text


def test_the_picture_is_the_one_that_its_command_draws(tmp_path, monkeypatch):
    command = re.search(r"^python (tools/plot_schedule\.py .*)$", GUIDE, re.MULTILINE)[1].split()
    settings = dict(zip(command[1::2], command[2::2], strict=True))
    drawn = draw_schedule(int(settings["--total-steps"]), int(settings["--warmup-steps"]))
    assert (ROOT / settings["--output"]).read_text() == drawn
    call(plot_schedule, monkeypatch, *command[1:-1], tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").read_text() == drawn


def test_the_picture_follows_the_schedule():
    whole, start = re.findall(r'<polyline points="([^"]*)"', draw_schedule(100, 10))
    heights = [float(point.split(",")[1]) for point in whole.split()]
    top, bottom = min(heights), max(heights)
    assert len(heights) == 100 and heights[9] == heights[10] == top
    assert heights[0] == pytest.approx(bottom - 0.1 * (bottom - top), abs=0.2), "a tenth of the rate in the first step"
    assert heights[55] == pytest.approx((top + bottom) / 2, abs=0.2), "half of it halfway down"
    assert len(start.split()) == 30


@pytest.mark.parametrize("warmup", [-1, 100])
def test_a_schedule_that_cannot_be_is_refused(warmup, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"--warmup-steps {warmup}: "):
        call(plot_schedule, monkeypatch, "--total-steps", 100, "--warmup-steps", warmup, "--output", tmp_path / "x.svg")
    assert not list(tmp_path.iterdir())


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", GUIDE):
        path, _, anchor = target.partition("#")
        text = (ROOT / path).read_text() if path.endswith(".md") else GUIDE
        assert (ROOT / path).exists() and (not anchor or anchor in anchors_of(text)), target


def anchors_of(text: str) -> set[str]:
    """As GitHub names the headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_row_of_the_fault_table_is_a_test():
    rows = GUIDE.split("## Faults")[1].split("\n## ")[0].splitlines()
    named = [re.findall(r"`(test_\w+)`", row) for row in rows if row.startswith("| ") and not row.startswith("| fault")]
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*faults*.py"))
    assert len(named) > 15 and all(named)
    for name in sum(named, []):
        assert f"def {name}(" in sources, name


def test_it_lists_every_setting_that_must_not_change():
    for name in (*RESULT_FLAGS, "train_digest"):
        assert f"`{name}`" in GUIDE.split("## Going on")[1].split("## Reading a run")[0], name
