"""Making ground truth: ms a sample, the share of each step, a larger map, and the cache at the size of trainval.

The yardstick is the official devkit's own clipping (NuScenesMapExplorer.get_map_geom on the five layers), which
published extractors build on: they do all of its work and then unite and cut what it returns. The limit is our own
calls of Shapely's functions, GEOS's work, on the very same geometries, and nothing else.
"""

import argparse
import cProfile
import inspect
import json
import pstats
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import shapely
from nuscenes.map_expansion.map_api import NuScenesMap

from data.geometry import pose_matrix, yaw_of
from data.gt_cache import GT_STYLES, GTCache, write_gt_cache
from data.map_expansion import LINE_LAYERS, POLYGON_LAYERS, map_expansion_path, read_map_tables
from data.nuscenes_reader import load_tables, read_records
from data.records import SampleRecord
from data.splits import SPLITS, resolve_split
from data.vectorize import MapVectorizer, patch_pose
from tools.benchmarks.common import copies_of, make_again, private_memory_mb, recorded_calls, spread, timed
from tools.generate_gt_cache import vectorize_records
from utils.errors import UserError
from utils.files import default_dataroot
from utils.frame import PC_RANGES

TRAINVAL_SAMPLES = 34_149
# Functions by which cProfile's times are grouped into steps; cumulative, none inside another.
STEPS = {
    "find (tree query)": ("query",),
    "cut": ("_cut",),
    "turn into the frame": ("transform",),
    "crossings": ("_crossings",),
    "boundaries": ("_boundaries",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataroot", default=default_dataroot(), help="nuScenes folder (default: %(default)s)")
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=SPLITS, help="samples to measure")
    parser.add_argument("--pc-range", default="60x30", choices=PC_RANGES, help="length x width in metres")
    parser.add_argument("--gt-style", default="maptr", choices=GT_STYLES)
    parser.add_argument("--samples", type=int, default=1000, help="poses to measure; key frames repeat, moved a little")
    parser.add_argument("--larger-map", type=int, default=10, help="also on a map of this many copies of the city")
    parser.add_argument("--devkit-samples", type=int, default=20, help="poses a city for the yardstick; 0: none")
    parser.add_argument("--cache-samples", type=int, default=TRAINVAL_SAMPLES, help="size of the replicated cache")
    parser.add_argument("--num-workers", type=int, default=2, help="processes of the whole-split measurement")


def run(args: argparse.Namespace) -> dict:
    """Measure and print; returns the figures, times in milliseconds unless the name says otherwise."""
    if min(args.samples, args.larger_map, args.cache_samples, args.num_workers) < 1:
        raise UserError("--samples, --larger-map, --cache-samples, --num-workers: expected 1 or more")
    dataroot, pc_range = Path(args.dataroot), PC_RANGES[args.pc_range]
    tables = load_tables(dataroot, args.version)
    records = [record for split in args.splits for record in read_records(tables, resolve_split(split, args.version))]
    moved = moved_records(records, args.samples)
    by_city = {
        city: [patch_pose(record, args.gt_style) for record in moved if record.location == city]
        for city in sorted({record.location for record in moved})
    }
    result = {"cities": {}}
    vectorizers = {}
    for city, poses in by_city.items():
        vectorizers[city], load_s = timed(MapVectorizer, dataroot, city, pc_range, args.gt_style)
        found = result["cities"][city] = {"samples": len(poses), "map_load_s": load_s}
        larger = larger_vectorizer(dataroot, city, args)
        ms = milliseconds([vectorizers[city], larger], poses)
        found["ms"], found["larger_map_ms"] = map(spread, ms)
        found |= limit_of(vectorizers[city], poses)
        found["share"] = step_shares(vectorizers[city], poses)
        if args.devkit_samples:
            few = poses[:: max(1, len(poses) // args.devkit_samples)]
            found["devkit_ms"] = spread(devkit_milliseconds(dataroot, city, pc_range, few))
        print(format_city(city, found, args.larger_map))
    with_lines, seconds = timed(vectorize_records, moved, vectorizers, args.gt_style, args.num_workers)
    result["all"] = {
        "samples": len(moved),
        "processes": args.num_workers,
        "seconds": seconds,
        "trainval_s": seconds / len(moved) * TRAINVAL_SAMPLES,
    }
    print(
        f"{len(moved)} samples in {args.num_workers} processes: {seconds:.1f} s; "
        f"{TRAINVAL_SAMPLES} samples (trainval) at that rate: {result['all']['trainval_s']:.0f} s"
    )
    result["cache"] = cache_at_size(with_lines, args)
    cache = result["cache"]
    print(
        f"cache of {cache['samples']} samples: {cache['megabytes']:.0f} MB, written in {cache['write_s']:.1f} s, "
        f"opened in {cache['open_ms']:.2f} ms, verified in {cache['verify_ms']:.0f} ms, "
        f"{cache['record_us']:.0f} us a record, {cache['memory_mb']:.1f} MB of memory once read through"
    )
    return result


def format_city(city: str, found: dict, copies: int) -> str:
    """The figures of one city as lines of text."""
    ms, larger = found["ms"], found["larger_map_ms"]
    lines = [
        f"{city}: {ms['median']:.2f} ms a sample (mean {ms['mean']:.2f}, 90 % below {ms['p90']:.2f}, "
        f"{ms['count']} poses); map of {copies} cities {larger['median']:.2f} ms, "
        f"{larger['median'] / ms['median']:.2f} times as long"
    ]
    if "devkit_ms" in found:
        devkit = found["devkit_ms"]["median"]
        lines.append(f"  the devkit's clipping alone: {devkit:.1f} ms, {devkit / ms['median']:.1f} times as long")
    lines.append(
        f"  Shapely's calls alone: {found['limit_ms']['median']:.2f} ms, of which a sample takes "
        f"{found['limit_ratio']['median']:.2f} times"
    )
    lines.append("  " + ", ".join(f"{step} {100 * share:.0f} %" for step, share in found["share"].items()))
    return "\n".join(lines)


def moved_records(records: Sequence[SampleRecord], count: int) -> list[SampleRecord]:
    """`count` records: the given ones in turn, after the first round moved by up to 2 m and turned by up to 5 deg."""
    rng = np.random.default_rng(0)
    moved = []
    for index in range(count):
        record = records[index % len(records)]
        if index >= len(records):
            turn = rng.uniform(-1, 1) * np.deg2rad(5) / 2
            nudge = pose_matrix(np.append(rng.uniform(-2, 2, 2), 0.0), [np.cos(turn), 0, 0, np.sin(turn)])
            record = replace(
                record, lidar2global=record.lidar2global @ nudge, ego2global=record.ego2global @ nudge
            )
        moved.append(record)
    return moved


def milliseconds(vectorizers: Sequence[MapVectorizer], poses: Sequence[np.ndarray]) -> np.ndarray:
    """Time [len(vectorizers), len(poses)] of each pose, the vectorizers taking turns so that noise meets all alike."""
    for vectorizer in vectorizers:
        vectorizer.vectorize(poses[0])  # the libraries warm up
    return 1e3 * np.array([[timed(each.vectorize, pose)[1] for each in vectorizers] for pose in poses]).T


def limit_of(vectorizer: MapVectorizer, poses: Sequence[np.ndarray]) -> dict:
    """What Shapely's functions alone take of each pose, and how many times as long the whole takes."""
    functions = [name for name, value in vars(shapely).items() if inspect.isfunction(value)]
    own, alone = [], []
    for pose in poses:
        own.append(timed(vectorizer.vectorize, pose)[1])
        with recorded_calls(shapely, functions) as calls:
            vectorizer.vectorize(pose)
        alone.append(timed(make_again, calls)[1])
    own, alone = np.array(own), np.array(alone)
    return {"limit_ms": spread(1e3 * alone), "limit_ratio": spread(own / alone)}


def step_shares(vectorizer: MapVectorizer, poses: Sequence[np.ndarray]) -> dict[str, float]:
    """Share of the time in each of STEPS, by Python's profiler (whose own cost falls on the small steps most)."""
    profile = cProfile.Profile()
    profile.runcall(lambda: [vectorizer.vectorize(pose) for pose in poses])
    seconds = {}
    for (_, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():
        seconds[name] = seconds.get(name, 0.0) + cumulative
    total = seconds["vectorize"]
    shares = {step: sum(seconds.get(name, 0.0) for name in names) / total for step, names in STEPS.items()}
    shares["dividers and the rest"] = 1.0 - sum(shares.values())
    return shares


def larger_vectorizer(dataroot: Path, city: str, args: argparse.Namespace) -> MapVectorizer:
    """The city and copies of it beside it on one map, args.larger_map in all."""
    with tempfile.TemporaryDirectory() as folder:
        path = map_expansion_path(folder, city)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(replicated(read_map_tables(dataroot, city), args.larger_map)))
        return MapVectorizer(folder, city, PC_RANGES[args.pc_range], args.gt_style)


def replicated(tables: dict, copies: int) -> dict:
    """Map tables with the city and copies of it, each one width of the city farther along x."""
    nodes = np.array([(node["x"], node["y"]) for node in tables["node"]])
    width = np.ptp(nodes[:, 0]) + 1000.0
    larger = {"version": tables["version"]}
    for name in (*LINE_LAYERS, *POLYGON_LAYERS, "node", "line", "polygon"):
        larger[name] = [_renamed(record, copy, copy * width) for copy in range(copies) for record in tables[name]]
    return larger


def _renamed(record: dict, copy: int, shift: float) -> dict:
    """What the vectorizer reads of a map record, in one copy: tokens marked, nodes moved by shift metres."""

    def mark(token: str) -> str:
        return f"{token}-{copy}"

    renamed = {}
    for key, value in record.items():
        if key in ("x", "y"):
            renamed[key] = value + shift if key == "x" else value
        elif key in ("token", "line_token", "polygon_token"):
            renamed[key] = mark(value)
        elif key in ("node_tokens", "exterior_node_tokens"):
            renamed[key] = [mark(token) for token in value]
        elif key == "holes":
            renamed[key] = [{"node_tokens": [mark(token) for token in hole["node_tokens"]]} for hole in value]
    return renamed


def devkit_milliseconds(
    dataroot: Path, city: str, pc_range: Sequence[float], poses: Sequence[np.ndarray]
) -> list[float]:
    """Times of the official devkit's clipping of the five layers around each pose."""
    nuscenes_map = NuScenesMap(str(dataroot), city)
    height, width = pc_range[4] - pc_range[1], pc_range[3] - pc_range[0]
    layers = [*LINE_LAYERS, *POLYGON_LAYERS]
    boxes = [(pose[0, 3], pose[1, 3], height, width) for pose in poses]
    degrees = np.rad2deg([yaw_of(pose) for pose in poses])
    return [
        timed(nuscenes_map.get_map_geom, box, angle, layers)[1] * 1e3
        for box, angle in zip(boxes, degrees, strict=True)
    ]


def cache_at_size(records: Sequence[SampleRecord], args: argparse.Namespace) -> dict[str, float]:
    """Size and times of a cache that repeats these records, each copy under its own token."""
    copies = copies_of(records, args.cache_samples)
    meta = {
        "split": "train",
        "version": args.version,
        "pc_range": list(PC_RANGES[args.pc_range]),
        "gt_style": args.gt_style,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.safetensors"
        _, write_s = timed(write_gt_cache, path, copies, meta)
        del copies
        openings = [timed(GTCache.open, path)[1] * 1e3 for _ in range(20)]
        cache = GTCache.open(path)
        read_s = sum(timed(cache.__getitem__, index)[1] for index in range(len(cache)))
        return {
            "samples": len(cache),
            "megabytes": path.stat().st_size / 1e6,
            "write_s": write_s,
            "open_ms": float(np.median(openings)),
            "verify_ms": timed(cache.verify)[1] * 1e3,
            "record_us": read_s / len(cache) * 1e6,
            "memory_mb": get_context("spawn").Pool(1).apply(memory_of_reading, (path,)),
        }


def memory_of_reading(path: Path) -> float:
    """MB of private memory that opening a cache and reading every record costs a fresh process."""
    before = private_memory_mb()
    cache = GTCache.open(path)
    for index in range(len(cache)):
        cache[index]
    return private_memory_mb() - before
