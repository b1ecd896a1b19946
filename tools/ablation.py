#!/usr/bin/env python3
"""What each part and setting is worth: trainings that differ in one thing, scored on streets that none has seen.

Every row of the table is a training with one change. What stands behind -- goes to every training; a row and seed that
is finished is not run again, one that was interrupted goes on.

Examples:
  python tools/ablation.py --dataroot W --val-dataroot D --output-dir ablation -- --preset tiny --epochs 2
  python tools/ablation.py --dataroot W --output-dir ablation --rows default no-llm --seeds 0 1 2 --jobs 2
  python tools/ablation.py --output-dir ablation --table   # of what is there
"""

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.gt_cache import GTCache, default_cache_path  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import replacing  # noqa: E402
from utils.frame import CLASSES  # noqa: E402
from utils.text_table import format_score  # noqa: E402

# Name of a row -> what it changes, in words, and the flags of train_map_detection.py that do it. One of them needs a
# model that is not here: --pretrained-llm.
ROWS = {
    "default": ("the default", ""),
    "no-llm": ("without the LLM", "--llm-path none"),
    "pretrained-llm": ("first 6 layers of a pretrained LLM", "--llm-path {pretrained_llm} --llm-layers 6"),
    "no-sampling": ("without image sampling in the decoder", "--without decoder_sampling"),
    "no-geometry": ("without the geometry embedding", "--without geometry"),
    "no-qformer": ("without the Q-Former and its tokens", "--without qformer"),
    "no-ground-tokens": ("without the ground tokens", "--without ground_tokens"),
    "full-prefix": ("full instead of causal prefix", "--without causal_prefix"),
    "clip-35": ("gradient clipped to 35 instead of 0.1", "--grad-clip 35"),
    "mission-lr": ("learning rates 1e-5, 1e-4, 1e-4", "--lr-qformer 1e-5 --lr-queries 1e-4 --lr-decoder 1e-4"),
    "no-noisy-copies": ("without noisy copies", "--noisy-copies 0"),
    "no-mirror": ("without mirrored samples", "--mirror 0"),
    "rotation": ("the car's frame turned by up to 5 degrees", "--rotation 5"),
    "zoom": ("image windows smaller by up to a tenth", "--zoom 0.1"),
    "photometric": ("brightness, contrast, saturation vary by 0.2", "--photometric 0.2"),
    "ema": ("average of the weights, decay 0.999", "--ema-decay 0.999"),
    "lora": ("rank 16 added to the LLM", "--lora-rank 16 --lr-lora 1.2e-3"),
}
VERSION = "v1.0-trainval"


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
    parser.add_argument("train_flags", nargs="*", help="behind --: flags of train_map_detection.py for every row")
    args = parser.parse_args()
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    args.rows = args.rows or [row for row in ROWS if args.pretrained_llm or row != "pretrained-llm"]
    if "pretrained-llm" in args.rows and not args.pretrained_llm:
        raise UserError("--rows pretrained-llm: which model? Add --pretrained-llm with a folder, .gguf file or hub id")
    if not args.table and args.dataroot is None:
        raise UserError("--dataroot: is missing; give the world to train on, or --table")
    if not args.table:  # the trainings start from the repository, not from here
        args.dataroot, args.val_dataroot = args.dataroot.resolve(), (args.val_dataroot or args.dataroot).resolve()
        if args.pretrained_llm and Path(args.pretrained_llm).exists():
            args.pretrained_llm = str(Path(args.pretrained_llm).resolve())
    return args


def cache_of(dataroot: Path, version: str, split: str) -> Path:
    """The split's ground-truth cache, where tools/generate_gt_cache.py leaves it. Raises UserError without one."""
    path = default_cache_path(dataroot, version, split)
    if not path.is_file():
        raise UserError(f"{path}: no such cache; python tools/generate_gt_cache.py --dataroot {dataroot} "
                        f"--version {version} --split {split}")
    return path


def run_row(args: argparse.Namespace, row: str, seed: int) -> str:
    """Train and diagnose one row with one seed, unless that is done; returns a line that says how it ended."""
    folder = (args.output_dir / f"{row}_seed{seed}").resolve()
    found = folder / "diagnosis.json"
    train_cache = cache_of(args.dataroot, args.version, "train")
    val_cache = cache_of(args.val_dataroot, args.version, "val")
    row_flags = ROWS[row][1].format(pretrained_llm=shlex.quote(args.pretrained_llm or ""))
    hold_to_settings(folder, {"train_flags": args.train_flags, "row_flags": row_flags,
                              "train_digest": GTCache.open(train_cache).meta["digest"],
                              "val_digest": GTCache.open(val_cache).meta["digest"]})  # fmt: skip
    if not found.is_file():
        train = ["train_map_detection.py", *args.train_flags, *shlex.split(row_flags), "--seed", seed,
                 "--dataroot", args.dataroot, "--version", args.version,
                 "--output-dir", folder / "run", "--resume", "auto"]  # fmt: skip
        look = ["tools/diagnose.py", "--checkpoint", folder / "run" / "final_model.pth", "--num-workers", 0,
                "--dataroot", args.val_dataroot, "--gt-cache", val_cache, "--json", found]  # fmt: skip
        with (folder / "output.log").open("a") as log:
            for command in (train, look):
                done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=log, stderr=log)
                if done.returncode:
                    raise UserError(f"{row}, seed {seed}: ended with {done.returncode}, see {folder / 'output.log'}")
    return f"{row}, seed {seed}: mAP {json.loads(found.read_text())['result']['mAP']:.3f}"


def hold_to_settings(folder: Path, settings: dict) -> None:
    """Write down what a row is run with. Raises UserError when it was begun with something else."""
    path = folder / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text())
        for name in settings:
            if before.get(name) != settings[name]:
                raise UserError(f"{path}: was begun with {name} {before.get(name)}, now it is {settings[name]}; "
                                "give the same, or another --output-dir")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((json.dumps(settings, indent=2) + "\n").encode())


def collect(folder: Path) -> dict[str, dict[int, dict]]:
    """Row -> seed -> diagnosis, of the rows that are finished, in the order of ROWS."""
    found: dict[str, dict[int, dict]] = {}
    for row in ROWS:
        for path in sorted(folder.glob(f"{row}_seed*/diagnosis.json")):
            seed = int(path.parent.name.removeprefix(f"{row}_seed"))
            found.setdefault(row, {})[seed] = json.loads(path.read_text())
    return found


def table(found: dict[str, dict[int, dict]]) -> str:
    """Markdown: medians over the seeds, mAP with its range where there are several, and its distance to the default."""
    head = ["change", "seeds", "mAP", "to the default", *CLASSES, "LLM's states alone", "scene tokens' mean"]
    lines = [head, ["---"] * len(head)]
    for row, by_seed in found.items():
        every = [diagnosis["heads"][-1]["mAP"] for diagnosis in by_seed.values()]
        spread = f" ({min(every):.3f} to {max(every):.3f})" if len(every) > 1 else ""
        middle = median(by_seed, "heads", -1, "mAP")
        away = middle - median(found["default"], "heads", -1, "mAP") if "default" in found else math.nan
        cells = [median(by_seed, "heads", -1, name) for name in CLASSES]
        cells += [median(by_seed, "heads", 0, "mAP"), median(by_seed, "mean_scene", -1, "mAP")]
        lines.append([ROWS[row][0], ", ".join(map(str, sorted(by_seed))), format_score(middle) + spread,
                      "" if row == "default" else f"{away:+.3f}", *map(format_score, cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def median(by_seed: dict[int, dict], part: str, index: int, name: str) -> float:
    """Over the seeds, of one figure of a diagnosis; NaN where there was nothing to find."""
    values = [diagnosis[part][index][name] for diagnosis in by_seed.values()]
    return math.nan if None in values else statistics.median(values)


def main() -> None:
    args = parse_args()
    if not args.table:
        for dataroot, split in ((args.dataroot, "train"), (args.dataroot, "val"), (args.val_dataroot, "val")):
            cache_of(dataroot, args.version, split)
        jobs = [(row, seed) for seed in args.seeds for row in args.rows]
        with ThreadPoolExecutor(args.jobs) as pool:
            for line in pool.map(lambda job: run_row(args, *job), jobs):
                print(line, flush=True)
    found = collect(args.output_dir)
    if not found:
        raise UserError(f"--output-dir {args.output_dir}: holds no finished row")
    print(table(found))


if __name__ == "__main__":
    run_cli(main)
