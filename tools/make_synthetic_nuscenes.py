"""Write a synthetic dataset in nuScenes' format: procedural towns, rendered cameras, tables, map expansion.

Example:
  python tools/make_synthetic_nuscenes.py --out DIR --train-scenes 15 --val-scenes 5 --samples-per-scene 40
"""

import argparse
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.synthetic.plan import SAMPLE_INTERVAL, SCENE_SPACING, WorldSettings  # noqa: E402
from data.synthetic.world import check_target, write_world  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402

SPLITS = {"v1.0-trainval": ("train", "val"), "v1.0-mini": ("mini_train", "mini_val")}
SMALLEST_IMAGE, LARGEST_IMAGE = 64, 4096
SHORTEST_INTERVAL = 0.1  # seconds


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the dataroot to make")
    parser.add_argument("--train-scenes", type=int, default=15)
    parser.add_argument("--val-scenes", type=int, default=5)
    parser.add_argument("--samples-per-scene", type=int, default=40, help="key frames (nuScenes: 40)")
    parser.add_argument("--sample-interval", type=float, default=SAMPLE_INTERVAL,
                        help="seconds between them (default, and nuScenes: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", default="1600x900", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--version", default="v1.0-trainval", help=" or ".join(SPLITS))
    parser.add_argument("--with-test-set", action="store_true", help="also v1.0-test: the same drives, unannotated")
    parser.add_argument("--num-workers", type=int, default=os.cpu_count(), help="processes; any number, same bytes")
    parser.add_argument("--overwrite", action="store_true", help="replace a synthetic world at --out")
    return parser.parse_args()


def parse_image_size(text: str) -> tuple[int, int]:
    """(width, height) from WIDTHxHEIGHT."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    size = tuple(int(part) for part in match.groups()) if match else (0, 0)
    if not all(SMALLEST_IMAGE <= side <= LARGEST_IMAGE for side in size):
        raise UserError(
            f"--image-size: {text}, WIDTHxHEIGHT with sides of {SMALLEST_IMAGE} to {LARGEST_IMAGE} pixels is "
            "expected; for instance 1600x900"
        )
    return size


def check_interval(interval: float, samples: int) -> None:
    """Raise UserError for an interval in which no car moves, or a scene that runs into the next of its log."""
    if not (SHORTEST_INTERVAL <= interval and samples * interval < SCENE_SPACING):
        raise UserError(
            f"--sample-interval: {interval:g}, at least {SHORTEST_INTERVAL} seconds are expected, and less than "
            f"{SCENE_SPACING} for all {samples} key frames of a scene; choose another"
        )


def scene_names(version: str, train_scenes: int, val_scenes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Official scene names of the version's train and val splits."""
    from nuscenes.utils.splits import create_splits_scenes  # slow to import: after the cheap checks

    names = []
    official = create_splits_scenes()
    for flag, split, count in zip(
        ("--train-scenes", "--val-scenes"), SPLITS[version], (train_scenes, val_scenes), strict=True
    ):
        if count > len(official[split]):
            raise UserError(
                f"{flag}: {count}, at most {len(official[split])} scenes are in {split} of {version}; ask for fewer"
            )
        names.append(tuple(official[split][:count]))
    return names[0], names[1]


def main() -> None:
    args = parse_args()
    if args.version not in SPLITS:
        raise UserError(f"--version: {args.version}, {' or '.join(SPLITS)} is expected; choose one of them")
    for flag, value, least in (
        ("--train-scenes", args.train_scenes, 1),
        ("--val-scenes", args.val_scenes, 1),
        ("--samples-per-scene", args.samples_per_scene, 1),
        ("--num-workers", args.num_workers, 1),
        ("--seed", args.seed, 0),
    ):
        if value < least:
            raise UserError(f"{flag}: {value}, at least {least} is expected; give a larger number")
    check_interval(args.sample_interval, args.samples_per_scene)
    image_size = parse_image_size(args.image_size)
    out = args.out.resolve()
    check_target(out, args.overwrite)
    train, val = scene_names(args.version, args.train_scenes, args.val_scenes)
    settings = WorldSettings(
        args.version, train, val, args.samples_per_scene, args.seed, image_size, args.sample_interval
    )
    write_world(out, settings, args.num_workers, args.overwrite, args.with_test_set)
    samples = (len(train) + len(val)) * args.samples_per_scene
    print(f"{out}: {len(train)} train and {len(val)} val scenes, {samples} samples, version {args.version}")


if __name__ == "__main__":
    run_cli(main)
