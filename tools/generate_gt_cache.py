"""Make the GT cache of a split: python tools/generate_gt_cache.py --split train --dataroot D

Reads the nuScenes tables and the map expansion once; training then needs the cache and the JPEGs alone.

Example:
  python tools/generate_gt_cache.py --split val --dataroot data/nuscenes --num-workers 8
"""

import argparse
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version as package_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.geometry import invert_rigid, transform_plane  # noqa: E402
from data.gt_cache import GT_STYLES, GTCache, default_cache_path, write_gt_cache  # noqa: E402
from data.nuscenes_reader import check_images, load_tables, read_records, require_dataroot  # noqa: E402
from data.records import SampleRecord  # noqa: E402
from data.splits import SPLITS, resolve_split  # noqa: E402
from data.vectorize import BOUNDARY_MARGIN, MapVectorizer, patch_pose  # noqa: E402
from tools.gt_notes import absence_warnings, absent_classes, left_out_notes  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, naming_killed_workers, run_cli  # noqa: E402
from utils.files import default_dataroot, replacing, require_writable  # noqa: E402
from utils.frame import CLASSES, PC_RANGES  # noqa: E402

CHUNK = 32  # samples that a worker process takes at a time
# Maps of the cities by name, in each worker process.
_vectorizers: dict[str, MapVectorizer] = {}


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--split", required=True, choices=SPLITS, help="train means mini_train in v1.0-mini")
    parser.add_argument(
        "--dataroot", default=None, help="nuScenes folder (default: $NUSCENES_DATAROOT, else data/nuscenes)"
    )
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--output", help="default: <dataroot>/gt_cache/<version>_<split>_<range>.safetensors")
    parser.add_argument("--pc-range", default="60x30", choices=PC_RANGES, help="length x width in metres")
    parser.add_argument(
        "--gt-style", default="maptr", choices=GT_STYLES, help="whose vectors; data/vectorize.py tells them apart"
    )
    parser.add_argument("--num-workers", type=int, default=0, help="processes; 0 works in this one")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--export-json",
        help="also write {sample_token: {class: [[[x, y], ...], ...]}} in metres: LiDAR frame (maptr), "
        "ego frame (streammapnet)",
    )
    parser.add_argument("--skip-image-check", action="store_true", help="do not look for the image files")
    args = parser.parse_args()
    if args.num_workers < 0:
        parser.error(f"--num-workers: {args.num_workers}, expected 0 or more")
    return args


def main() -> None:
    args = parse_args()
    started = time.perf_counter()
    dataroot = Path(args.dataroot or default_dataroot())
    split = resolve_split(args.split, args.version)
    default = default_cache_path(dataroot, args.version, split, args.pc_range, args.gt_style)
    output = Path(args.output) if args.output else default
    pc_range = PC_RANGES[args.pc_range]
    require_dataroot(dataroot, args.version)
    try:
        require_writable(output)
    except UserError as error:  # most often a dataset that several people share
        raise UserError(f"{error} with --output, and name it to the training scripts by GT_CACHE_TRAIN or "
                        "GT_CACHE_VAL") from error
    require_writable(output, args.export_json)
    if not args.overwrite:
        for path in (output, args.export_json):
            refuse_existing(path, split, args.version, pc_range, args.gt_style)
    records = read_records(load_tables(dataroot, args.version), split)
    if not args.skip_image_check:
        check_images(records, dataroot)
    cities = sorted({record.location for record in records})
    vectorizers = {city: MapVectorizer(dataroot, city, pc_range, args.gt_style) for city in cities}
    records = vectorize_records(records, vectorizers, args.gt_style, args.num_workers)
    meta = {
        "split": split,
        "version": args.version,
        "devkit_version": package_version("nuscenes-devkit"),
        "shapely_version": package_version("shapely"),
        "pc_range": list(pc_range),
        "gt_style": args.gt_style,
        "boundary_margin": BOUNDARY_MARGIN,
        "invalid_polygons": {city: vectorizer.invalid_tokens for city, vectorizer in vectorizers.items()},
    }
    write_outputs(output, args.export_json, records, meta)
    print_summary(output, records, meta, time.perf_counter() - started)


def refuse_existing(
    path: str | Path | None, split: str, version: str, pc_range: Sequence[float], gt_style: str
) -> None:
    """Raise UserError when the file exists; of a cache the message says by which setting it differs."""
    if path is None or not os.path.exists(path):
        return
    fix = "give --overwrite to replace it or another name"
    if Path(path).suffix == ".safetensors":
        GTCache.open(path).require(split=split, version=version, pc_range=pc_range, gt_style=gt_style, fix=fix)
    raise UserError(f"{path}: is already there; {fix}")


def vectorize_records(
    records: Sequence[SampleRecord], vectorizers: dict[str, MapVectorizer], gt_style: str, num_workers: int
) -> list[SampleRecord]:
    """The same records with their ground truth, in the same order for any number of workers."""
    jobs = [(record.location, patch_pose(record, gt_style)) for record in records]
    bar = {"total": len(jobs), "unit": "sample", "disable": not sys.stderr.isatty()}
    if num_workers == 0:
        _vectorizers.update(vectorizers)
        found = list(tqdm(map(_vectorize, jobs), **bar))
    else:
        # closing: an interrupt ends the pool too, wherever it strikes
        with closing(_vectorize_in_processes(jobs, vectorizers, num_workers)) as results:
            found = list(tqdm(results, **bar))
    with_lines = []
    for record, (labels, pts_m) in zip(records, found, strict=True):
        if gt_style != "maptr":  # the cache is in the LiDAR frame whatever the style
            patch2lidar = invert_rigid(record.lidar2global) @ patch_pose(record, gt_style)
            pts_m = [transform_plane(pts, patch2lidar).astype(np.float32) for pts in pts_m]
        with_lines.append(replace(record, labels=labels, pts_m=pts_m))
    return with_lines


def _vectorize_in_processes(
    jobs: Sequence[tuple[str, np.ndarray]], vectorizers: dict[str, MapVectorizer], num_workers: int
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """_vectorize of every job, in their order."""
    processes = min(num_workers, math.ceil(len(jobs) / CHUNK) or 1)
    pool = ProcessPoolExecutor(processes, initializer=_start_worker, initargs=(vectorizers,))
    try:
        with naming_killed_workers(num_workers):
            # Ctrl-C waits until the processes have started; they inherit the block, so this one alone hears it.
            unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                results = pool.map(_vectorize, jobs, chunksize=CHUNK)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(vectorizers: dict[str, MapVectorizer]) -> None:
    _vectorizers.update(vectorizers)


def _vectorize(job: tuple[str, np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    location, patch2global = job
    return _vectorizers[location].vectorize(patch2global)


def write_outputs(output: Path, export: str | None, records: Sequence[SampleRecord], meta: Mapping) -> None:
    """Write the cache and, if asked for, its export; both or, when one of them cannot be written, neither."""
    if export is None:
        write_gt_cache(output, records, meta)
        return
    with replacing(export) as file:
        file.write(json.dumps(lines_by_sample(records, meta["gt_style"])).encode())
        file.flush()
        os.fsync(file.fileno())  # a full disk shows here, before the old cache is replaced
        write_gt_cache(output, records, meta)


def lines_by_sample(records: Sequence[SampleRecord], gt_style: str) -> dict[str, dict[str, list]]:
    """{sample_token: {class name: list of polylines}}, metres, in the frame of the style's patch."""
    by_sample = {}
    for record in records:
        lines = by_sample[record.sample_token] = {name: [] for name in CLASSES}
        lidar2patch = invert_rigid(patch_pose(record, gt_style)) @ record.lidar2global
        for label, pts in zip(record.labels, record.pts_m, strict=True):
            lines[CLASSES[label]].append(transform_plane(pts, lidar2patch).tolist())
    return by_sample


def print_summary(output: Path, records: Sequence[SampleRecord], meta: Mapping, seconds: float) -> None:
    """One line on what was written, then what the maps lost, and on stderr what the cities lack."""
    labels = np.concatenate([record.labels for record in records])
    counts = ", ".join(f"{int((labels == i).sum())} {name}" for i, name in enumerate(CLASSES))
    size = output.stat().st_size / 1e6
    print(f"{output}: {len(records)} samples, {counts}, {size:.1f} MB, {seconds:.1f} s")
    for line in left_out_notes(meta["invalid_polygons"]):
        print(line)
    samples_by_city = Counter(record.location for record in records)
    cities = list(samples_by_city)
    city_of = np.repeat([cities.index(record.location) for record in records], [len(r.labels) for r in records])
    for line in absence_warnings(absent_classes(labels, city_of, samples_by_city), samples_by_city):
        print(line, file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
