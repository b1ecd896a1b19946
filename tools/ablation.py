#!/usr/bin/env python3
"""What each part and setting is worth: trainings that differ in one thing, scored on streets that none has seen.

Every row of the table is a training with one change. What stands behind -- goes to every training; a row and seed that
is finished is not run again, one that was interrupted goes on.

Examples:
  python tools/ablation.py --dataroot W --val-dataroot D --output-dir ablation --rows default no-llm --seeds 0 1 2 \\
      --jobs 2 -- --preset tiny --epochs 2 --lr-qformer 1.2e-3 --lr-queries 1.2e-3 --lr-decoder 1.2e-3 \\
      --warmup-steps 50
  python tools/ablation.py --output-dir ablation --table   # of what is there
"""

import argparse
import json
import math
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.gt_cache import GTCache, default_cache_path, generate_command  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import require_writable, write_json  # noqa: E402
from utils.frame import CLASSES  # noqa: E402
from utils.machine import source_commit  # noqa: E402
from utils.text_table import format_score  # noqa: E402

# Name of a row -> what it changes, in words, and the flags of train_map_detection.py that do it. One of them needs a
# model that is not here: --pretrained-llm.
ROWS = {
    "default": ("the default", ""),
    "no-llm": ("without the LLM", "--llm-path none"),
    "pretrained-llm": ("first 2 layers of a pretrained LLM", "--llm-path {pretrained_llm} --llm-layers 2"),
    "no-sampling": ("without image sampling in the decoder", "--without decoder_sampling"),
    "no-geometry": ("without the geometry embedding", "--without geometry"),
    "no-qformer": ("without the Q-Former and its tokens", "--without qformer"),
    "no-ground-tokens": ("without the ground tokens", "--without ground_tokens"),
    "full-prefix": ("full instead of causal prefix", "--without causal_prefix"),
    "clip-35": ("gradient clipped to 35 instead of 0.1", "--grad-clip 35"),
    "pretrained-lr": ("learning rates 1e-5, 1e-4, 1e-4", "--lr-qformer 1e-5 --lr-queries 1e-4 --lr-decoder 1e-4"),
    "segmentation-2": ("segmentation losses weigh 2 instead of 8", "--segmentation-weight 2"),
    "no-noisy-copies": ("without noisy copies", "--noisy-copies 0"),
    "no-mirror": ("without mirrored samples", "--mirror 0"),
    "rotation": ("the car's frame turned by up to 5 degrees", "--rotation 5"),
    "zoom": ("image windows smaller by up to a tenth", "--zoom 0.1"),
    "photometric": ("brightness, contrast, saturation vary by 0.2", "--photometric 0.2"),
    "ema": ("average of the weights, decay 0.999", "--ema-decay 0.999"),
    "lora": ("rank 16 added to the LLM", "--lora-rank 16 --lr-lora 1.2e-3"),
}
VERSION = "v1.0-trainval"
OWN_FLAGS = ("--dataroot", "--version", "--gt-cache-train", "--gt-cache-val", "--output-dir", "--resume", "--seed")


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--output-dir", required=True, type=Path, help="a folder for every row and seed goes here")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--dataroot", type=Path, help="world whose train split is trained on")
    parser.add_argument("--val-dataroot", type=Path, help="world whose val split is scored (default: the same)")
    parser.add_argument("--version", default=VERSION, help="of both worlds (default: %(default)s)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW",
                        help=f"of {', '.join(ROWS)} (default: all, pretrained-llm where one is given)")
    parser.add_argument("--pretrained-llm", help="of the row of that name: what --llm-path of a training takes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the training (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("train_flags", nargs="*", help="behind --: flags of train_map_detection.py for every row, but "
                        f"{', '.join(OWN_FLAGS)}")
    args = parser.parse_args()
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    args.rows = args.rows or [row for row in ROWS if args.pretrained_llm or row != "pretrained-llm"]
    if "pretrained-llm" in args.rows and not args.pretrained_llm:
        raise UserError("--rows pretrained-llm: which model? Add --pretrained-llm with a folder, .gguf file or hub id")
    if not args.table and args.dataroot is None:
        raise UserError("--dataroot: is missing; give the world to train on, or --table")
    own = [flag for flag in args.train_flags if flag.partition("=")[0] in OWN_FLAGS]
    if own:
        raise UserError(f"-- {own[0]}: is decided here for every row; give --dataroot, --val-dataroot, --version, "
                        "--output-dir and --seeds in front of the --")
    require_writable(None if args.table else args.output_dir / "settings.json")
    if not args.table:  # the trainings start from the repository, not from here
        args.dataroot, args.val_dataroot = args.dataroot.resolve(), (args.val_dataroot or args.dataroot).resolve()
        if args.pretrained_llm and Path(args.pretrained_llm).exists():
            args.pretrained_llm = str(Path(args.pretrained_llm).resolve())
    return args


@dataclass(frozen=True)
class Row:
    """A row as it is run: its name, the flags of its trainings, and the caches they read and are scored on."""

    name: str
    flags: list[str]
    train_cache: Path
    val_cache: Path


def plan_row(args: argparse.Namespace, name: str) -> Row:
    """Raises UserError for flags that do not go together, and for a cache that is not there."""
    from models.flags import config_from_flags  # here: they load torch, which --table does without
    from training.flags import parse_args as parse_training

    change = shlex.split(ROWS[name][1].format(pretrained_llm=shlex.quote(args.pretrained_llm or "")))
    given = parse_training("", args.train_flags)
    if "--without" in change and given.without:  # the last one given would be the only one
        change[change.index("--without") + 1] += f",{given.without}"
    flags = [*args.train_flags, *change]
    try:
        settings = parse_training("", flags)
        config_from_flags(settings)
        caches = []
        for dataroot, split in ((args.dataroot, settings.train_split), (args.dataroot, settings.val_split),
                                (args.val_dataroot, settings.val_split)):  # fmt: skip
            path = default_cache_path(dataroot, args.version, split, settings.pc_range, settings.gt_style)
            if not path.is_file():
                raise UserError(f"{path}: no such cache; make it with {generate_command(path)}")
            caches.append(path)
    except UserError as error:
        raise UserError(f"row {name}: {error}") from error
    return Row(name, flags, caches[0], caches[-1])


class Commands:
    """The commands that threads of this program run, which can all be asked to end."""

    def __init__(self) -> None:
        self._lock, self._running, self._ended = threading.Lock(), set(), False

    def run(self, command: list[str], log: IO) -> int:
        """From the repository, output and errors to the log; its exit code, and SIGTERM's once all are to end."""
        with self._lock:
            if self._ended:
                return -signal.SIGTERM
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def end(self) -> None:
        """SIGTERM to those that run, at which a training saves; no other begins."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()


def run_row(args: argparse.Namespace, row: Row, seed: int, commands: Commands) -> str:
    """Train and diagnose one row with one seed, unless that is done; returns a line that says how it ended.

    Raises UserError where it did not end well, or was begun with other settings.
    """
    folder = (args.output_dir / f"{row.name}_seed{seed}").resolve()
    found = folder / "diagnosis.json"
    hold_to_settings(folder, {"flags": row.flags, "train_digest": GTCache.open(row.train_cache).meta["digest"],
                              "val_digest": GTCache.open(row.val_cache).meta["digest"]})  # fmt: skip
    if not found.is_file():
        train = ["train_map_detection.py", *row.flags, "--seed", seed, "--dataroot", args.dataroot,
                 "--version", args.version, "--output-dir", folder / "run", "--resume", "auto"]  # fmt: skip
        look = ["tools/diagnose.py", "--checkpoint", folder / "run" / "final_model.pth", "--num-workers", 0,
                "--dataroot", args.val_dataroot, "--gt-cache", row.val_cache, "--json", found]  # fmt: skip
        with (folder / "output.log").open("a") as log:
            for command in (train, look):
                code = commands.run([sys.executable, *map(str, command)], log)
                if code:
                    raise UserError(f"{row.name}, seed {seed}: ended with {code}, see {folder / 'output.log'}")
    return f"{row.name}, seed {seed}: mAP {format_score(score_of(json.loads(found.read_text())['result'], 'mAP'))}"


def run_rows(args: argparse.Namespace) -> list[str]:
    """All rows with all seeds, each ending in a printed line; returns those of the rows that did not end well."""
    rows = [plan_row(args, name) for name in args.rows]  # all of them before the first training
    failed, commands = [], Commands()

    def line_of(job: tuple[Row, int]) -> str:
        try:
            return run_row(args, *job, commands)
        except UserError as error:
            failed.append(str(error))
            return str(error)

    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            for line in pool.map(line_of, [(row, seed) for seed in args.seeds for row in rows]):
                print(line, flush=True)
        finally:  # when this program is asked to end in between: the pool waits for its threads
            commands.end()
    return failed


def hold_to_settings(folder: Path, settings: dict) -> None:
    """Write down what a row is run with, and the commit. Raises UserError when it was begun with something else."""
    path = folder / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text())
        for name in settings:
            if before.get(name) != settings[name]:
                raise UserError(f"{path}: was begun with {name} {before.get(name)}, now it is {settings[name]}; "
                                "give the same, or another --output-dir")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings | {"commit": source_commit()})


def commits_of(folder: Path, found: dict[str, dict[int, dict]]) -> set[str]:
    """The commits at which the finished rows were begun; "unknown" outside a git checkout."""
    paths = [folder / f"{row}_seed{seed}" / "settings.json" for row in found for seed in found[row]]
    return {str(json.loads(path.read_text()).get("commit") or "unknown") for path in paths if path.is_file()}


def collect(folder: Path) -> dict[str, dict[int, dict]]:
    """Row -> seed -> diagnosis, of the rows that are finished, in the order of ROWS."""
    found: dict[str, dict[int, dict]] = {}
    for row in ROWS:
        for path in sorted(folder.glob(f"{row}_seed*/diagnosis.json")):
            seed = path.parent.name.removeprefix(f"{row}_seed")
            if seed.isdecimal():  # otherwise a copy that somebody keeps
                found.setdefault(row, {})[int(seed)] = json.loads(path.read_text())
    return found


def table(found: dict[str, dict[int, dict]]) -> str:
    """Markdown: medians over the seeds, mAP with its range where there are several, and its distance to the default.

    The first head reads the LLM's states of the map queries; without an LLM, queries that have seen nothing, so that it
    says the same of every scene. The last column is of scene and ground tokens replaced by their mean.
    """
    head = ["change", "seeds", "mAP", "to the default", *CLASSES, "first head", "all tokens' mean"]
    lines = [head, ["---"] * len(head)]
    for row, by_seed in found.items():
        every = [score_of(diagnosis["heads"][-1], "mAP") for diagnosis in by_seed.values()]
        known = not any(map(math.isnan, every))
        spread = f" ({min(every):.3f} to {max(every):.3f})" if known and len(every) > 1 else ""
        middle = median(by_seed, "heads", -1, "mAP")
        away = middle - median(found["default"], "heads", -1, "mAP") if "default" in found else math.nan
        cells = [median(by_seed, "heads", -1, name) for name in CLASSES]
        cells += [median(by_seed, "heads", 0, "mAP"), median(by_seed, "mean_scene", -1, "mAP")]
        lines.append([ROWS[row][0], ", ".join(map(str, sorted(by_seed))), format_score(middle) + spread,
                      "" if row == "default" or math.isnan(away) else f"{away:+.3f}", *map(format_score, cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def median(by_seed: dict[int, dict], part: str, index: int, name: str) -> float:
    """Over the seeds, of one figure of a diagnosis; NaN where there was nothing to find."""
    values = [score_of(diagnosis[part][index], name) for diagnosis in by_seed.values()]
    return math.nan if any(map(math.isnan, values)) else statistics.median(values)


def score_of(figures: dict, name: str) -> float:
    """One of a diagnosis' figures; NaN where there was nothing to find."""
    return math.nan if figures[name] is None else figures[name]


def main() -> None:
    args = parse_args()
    failed = [] if args.table else run_rows(args)
    found = collect(args.output_dir)
    if not found and not failed:
        raise UserError(f"--output-dir {args.output_dir}: holds no finished row")
    print(table(found))
    commits = commits_of(args.output_dir, found)
    if len(commits) > 1:
        print(f"warning: begun at the commits {', '.join(sorted(commits))}; rows compare only where these train alike",
              file=sys.stderr)
    if failed:
        raise UserError("; ".join(failed))


if __name__ == "__main__":
    run_cli(main)
