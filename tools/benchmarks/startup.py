"""From command to first step on a cache of the training split's size, beside Python's imports alone in the same run.

Training is started as a user starts it, on made-up samples that share the images of a few rendered ones, and ended
after its first step. The preset is tiny, whose weights are drawn in no time: reading an LLM comes on top.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data.gt_cache import GTCache, write_gt_cache
from data.synthetic.plan import WorldSettings
from data.synthetic.world import write_world
from tools.benchmarks.common import SAMPLES, copies_of, spread, timed
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
VERSION = "v1.0-trainval"
IMPORTS = "import train_map_detection, transformers.models.llama.modeling_llama"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=SAMPLES["train"],
                        help="in the cache (default: %(default)s, train)")  # fmt: skip
    parser.add_argument("--num-workers", type=int, default=4, help="of the loader (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)


def run(args: argparse.Namespace) -> dict:
    """Measure and print; returns seconds."""
    if min(args.samples, args.repeats) < 1 or args.num_workers < 0:
        raise UserError(f"--samples {args.samples} --repeats {args.repeats} --num-workers {args.num_workers}: expected "
                        "at least 1, 1 and 0")  # fmt: skip
    seconds: dict[str, list[float]] = {"imports_s": [], "first_line_s": [], "first_step_s": []}
    with tempfile.TemporaryDirectory() as folder:
        flags = made_up_training(Path(folder), args.samples)
        for number in range(args.repeats):
            imports = [sys.executable, "-c", IMPORTS]
            seconds["imports_s"].append(timed(lambda: subprocess.run(imports, cwd=ROOT, check=True))[1])  # noqa: B023
            first_line, first_step = time_training(
                [*flags, "--num-workers", args.num_workers, "--output-dir", Path(folder) / f"run_{number}"]
            )
            seconds["first_line_s"].append(first_line)
            seconds["first_step_s"].append(first_step)
    found = {name: spread(values) for name, values in seconds.items()} | {"samples": args.samples}
    imports, line, step = (found[name]["median"] for name in seconds)
    print(f"cache of {args.samples} samples, {args.num_workers} workers: first step after {step:.1f} s, of which "
          f"{line:.1f} until the first line of the log; imports alone take {imports:.1f} s")  # fmt: skip
    return found


def made_up_training(folder: Path, count: int) -> list:
    """Flags of a training on `count` samples, made in the folder."""
    world = folder / "world"
    scenes = {"train_scenes": ("scene-0001",), "val_scenes": ("scene-0003",)}
    write_world(world, WorldSettings(VERSION, **scenes, samples_per_scene=1, seed=0, image_size=(1600, 900)))
    flags = ["--preset", "tiny", "--dataroot", world, "--version", VERSION, "--log-interval", 1, "--warmup-steps", 1]
    for split in ("train", "val"):
        cache = folder / f"{split}.safetensors"
        subprocess.run(
            [sys.executable, "tools/generate_gt_cache.py", "--dataroot", world, "--version", VERSION,
             "--split", split, "--output", cache], cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        flags += [f"--gt-cache-{split}", cache]
    few = GTCache.open(folder / "train.safetensors")
    copies = copies_of(few, count)
    meta = {name: few.meta[name] for name in ("split", "version", "pc_range", "gt_style")}
    write_gt_cache(folder / "copies.safetensors", copies, meta)
    return [*flags, "--gt-cache-train", folder / "copies.safetensors"]


def time_training(flags: list) -> tuple[float, float]:
    """Seconds from the command until the first line of the log, and until that of the first step."""
    command = [sys.executable, "train_map_detection.py", *map(str, flags)]
    started, first_line, line = time.perf_counter(), None, ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout:
                first_line = first_line or time.perf_counter() - started
                if " step 1/" in line:
                    return first_line, time.perf_counter() - started
        finally:
            process.terminate()
    raise RuntimeError(f"{' '.join(command)}: ended without a step: {line.strip()}")
