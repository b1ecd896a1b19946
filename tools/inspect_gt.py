"""See whether a GT cache is sane: python tools/inspect_gt.py --gt-cache F --output sheet.png

Checks the digest, prints settings, counts and lengths, warns of coordinates that cannot be right, and draws random
samples from above. Needs the cache alone, no images.

Example:
  python tools/inspect_gt.py --gt-cache data/nuscenes/gt_cache/v1.0-trainval_val_60x30.safetensors --output sheet.png
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from data.gt_cache import GTCache, range_name  # noqa: E402
from evaluation.pictures.contact_sheet import MAX_CELLS, Cell, draw_contact_sheet  # noqa: E402
from evaluation.vectors import Vectors  # noqa: E402
from tools.gt_notes import absence_warnings, absent_classes, left_out_notes  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import replacing, require_writable, write_json  # noqa: E402
from utils.frame import CLASSES  # noqa: E402
from utils.text_table import align_columns  # noqa: E402

LENGTH_EDGES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, math.inf)  # metres; a bin holds its lower edge
# Metres by which a point may lie outside pc_range. StreamMapNet's patch is centred on the ego origin and has the ego's
# yaw: about 1 m behind the LiDAR, and a degree turns its far corner by another metre.
MARGINS = {"maptr": 0.5, "streammapnet": 2.5}
SETTINGS = ("version", "split", "gt_style", "pc_range", "devkit_version", "shapely_version")


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--gt-cache", required=True, help="from tools/generate_gt_cache.py")
    parser.add_argument("--output", help="write a contact sheet of random samples here, a PNG file")
    parser.add_argument("--samples", type=int, default=24, help="of the contact sheet (default 24)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (default 0)")
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    if args.output is not None and Path(args.output).suffix.lower() != ".png":
        raise UserError(f"--output: {args.output}, a picture ends in .png; give such a name")
    if not 1 <= args.samples <= MAX_CELLS:
        raise UserError(f"--samples: {args.samples}, expected 1 to {MAX_CELLS}; give a number in between")
    if args.seed < 0:
        raise UserError(f"--seed: {args.seed}, expected 0 or more; give another number")
    require_writable(args.output, args.json, inputs=(args.gt_cache,))
    return args


def main() -> None:
    args = parse_args()
    cache = GTCache.open(args.gt_cache)
    cache.verify()
    summary = summarize_cache(cache)
    print(format_summary(summary))
    if args.json:
        write_json(args.json, summary)
    if args.output:
        sheet = random_sheet(cache, args.samples, args.seed)
        with replacing(args.output) as file:
            sheet.save(file, "PNG")
        print(f"{args.output}: {min(args.samples, len(cache))} samples, {sheet.width}x{sheet.height} pixels")


def summarize_cache(cache: GTCache) -> dict:
    """Settings, counts, figures of each class and warnings of a cache, as plain types.

    Works on the flat arrays of the whole split: N samples, T instances, K points.
    """
    offsets = cache.tensor("instance_offsets")  # [N+1] into the instances
    labels = cache.tensor("labels")  # [T]
    sample_of = np.repeat(np.arange(len(cache)), np.diff(offsets))  # [T]
    per_sample = np.diff(offsets)
    empty = np.flatnonzero(per_sample == 0)
    locations = np.bincount(cache.tensor("location"), minlength=len(cache.meta["locations"]))
    samples_by_city = dict(zip(cache.meta["locations"], locations.tolist(), strict=True))
    measures = measure_instances(cache)
    bad = {
        "too_short": ("fewer than 2 points", measures["points"] < 2),
        "not_finite": ("coordinates that are not finite", ~measures["finite"]),
        "outside": (
            f"points more than {MARGINS[cache.meta['gt_style']]} m outside pc_range",
            measures["finite"] & (measures["outside"] > MARGINS[cache.meta["gt_style"]]),
        ),
    }
    return {
        "file": cache.path,
        "settings": {key: cache.meta[key] for key in SETTINGS if key in cache.meta},
        "digest": cache.meta["digest"],
        "invalid_polygons": cache.meta.get("invalid_polygons", {}),
        "num_samples": len(cache),
        "num_scenes": len(cache.meta["scenes"]),
        "samples_by_city": samples_by_city,
        "absent_classes": absent_classes(labels, cache.tensor("location")[sample_of], samples_by_city),
        "classes": {
            name: summarize_class(measures, labels == label, sample_of, len(cache))
            for label, name in enumerate(CLASSES)
        },
        "length_edges": list(LENGTH_EDGES[:-1]),
        "without_instances": {"samples": len(empty), "first": token_at(cache, empty)},
        "warnings": {
            key: {
                "what": what,
                "instances": int(wrong.sum()),
                "first": token_at(cache, sample_of[wrong]),
            }
            for key, (what, wrong) in bad.items()
        },
    }


def measure_instances(cache: GTCache) -> dict[str, np.ndarray]:
    """Of every instance [T]: points, length in metres, whether it is a ring and finite, metres outside pc_range."""
    offsets, points = cache.tensor("point_offsets"), cache.tensor("points").astype(np.float64)  # [T+1], [K, 2]
    counts = np.diff(offsets)
    owner = np.repeat(np.arange(len(counts)), counts)  # [K]
    low, high = np.array(cache.meta["pc_range"][:2]), np.array(cache.meta["pc_range"][3:5])
    ring = counts >= 4
    ring[ring] = np.all(points[offsets[:-1][ring]] == points[offsets[1:][ring] - 1], axis=1)
    with np.errstate(invalid="ignore"):  # coordinates that are not finite are counted, not computed with
        steps = np.hypot(*np.diff(points, axis=0).T)  # [K-1]
        outside = np.full(len(counts), -np.inf)
        np.maximum.at(outside, owner, np.maximum(low - points, points - high).max(axis=1))
    inside = owner[1:] == owner[:-1]  # not from one instance to the next
    length = np.bincount(owner[1:][inside], steps[inside], minlength=len(counts))
    return {
        "points": counts,
        "length": length,
        "ring": ring,
        "finite": np.bincount(owner, ~np.isfinite(points).all(axis=1), minlength=len(counts)) == 0,
        "outside": outside,
    }


def summarize_class(measures: dict[str, np.ndarray], chosen: np.ndarray, sample_of: np.ndarray, samples: int) -> dict:
    """Figures of the chosen [T] instances; sample_of [T] says whose they are. None stands where there is nothing."""
    count = int(chosen.sum())
    per_sample = np.bincount(sample_of[chosen], minlength=samples)
    length = measures["length"][chosen & measures["finite"]]
    spread = np.quantile(length, [0.0, 0.5, 1.0]).tolist() if len(length) else [None] * 3
    return {
        "instances": count,
        "mean_per_sample": count / samples if samples else None,
        "max_per_sample": int(per_sample.max(initial=0)),
        "samples_with_any": int((per_sample > 0).sum()),
        "ring_share": float(measures["ring"][chosen].mean()) if count else None,
        "points": int(measures["points"][chosen].sum()),
        "length_histogram": np.histogram(length, LENGTH_EDGES)[0].tolist(),
        "length_m": dict(zip(("min", "median", "max"), spread, strict=True)),
    }


def token_at(cache: GTCache, samples: np.ndarray) -> str | None:
    """The token of the first of these positions, None without any."""
    return cache.sample_tokens[int(samples[0])] if len(samples) else None


def format_summary(summary: dict) -> str:
    """The summary as text of a page."""
    lines = [f"{summary['file']}: digest {summary['digest'][:16]}..., verified"]
    for key, value in summary["settings"].items():
        if key == "pc_range":
            value = f"{range_name(value)}  [{', '.join(f'{edge:g}' for edge in value)}] m"
        lines.append(f"  {key:<16}{value}")
    cities = ", ".join(f"{city} {count}" for city, count in summary["samples_by_city"].items())
    lines += [
        f"{summary['num_samples']} samples of {summary['num_scenes']} scenes in {len(summary['samples_by_city'])} "
        f"cities ({cities})",
        "",
    ]
    rows = [["class", "instances", "per sample", "most", "samples with any", "rings", "points", "points each"]]
    for name, figures in summary["classes"].items():
        each = figures["points"] / figures["instances"] if figures["instances"] else None
        rows.append([
            name, str(figures["instances"]), _cell(figures["mean_per_sample"], ".2f"), str(figures["max_per_sample"]),
            str(figures["samples_with_any"]), _cell(figures["ring_share"], ".1%"), str(figures["points"]),
            _cell(each, ".1f"),
        ])  # fmt: skip
    lines += [*align_columns(rows), ""]
    edges = summary["length_edges"]
    bins = [f"{low:g}-{high:g}" for low, high in zip(edges[:-1], edges[1:], strict=True)] + [f"{edges[-1]:g}+"]
    rows = [["length in metres", *bins, "min", "median", "max"]]
    for name, figures in summary["classes"].items():
        spread = [_cell(value, ".2f") for value in figures["length_m"].values()]
        rows.append([name, *map(str, figures["length_histogram"]), *spread])
    lines += [*align_columns(rows), ""]
    empty = summary["without_instances"]
    first = f", the first: {empty['first']}" if empty["samples"] else ""
    lines.append(f"{empty['samples']} of {summary['num_samples']} samples without any instance{first}")
    lines += left_out_notes(summary["invalid_polygons"])
    lines += absence_warnings(summary["absent_classes"], summary["samples_by_city"])
    for warning in summary["warnings"].values():
        if warning["instances"]:
            what, first = warning["what"], warning["first"]
            lines.append(f"warning: {warning['instances']} instances with {what}, the first in sample {first}")
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def random_sheet(cache: GTCache, count: int, seed: int) -> Image.Image:
    """A contact sheet of random samples, in the order of the cache."""
    if not len(cache):
        raise UserError(f"{cache.path}: no samples, at least one is needed for a picture; leave --output away")
    chosen = np.random.default_rng(seed).choice(len(cache), min(count, len(cache)), replace=False)
    cells = []
    for index in np.sort(chosen).tolist():
        record = cache[index]
        can_be_drawn = np.array([len(pts) > 1 and np.isfinite(pts).all() for pts in record.pts_m], bool)
        caption = (f"{record.sample_token[:8]}  {record.scene_name}", record.location)
        cells.append(Cell(caption, (("", Vectors(record.labels, record.pts_m).select(can_be_drawn)),)))
    meta = cache.meta
    of = f"{meta['version']} {meta['split']}, {meta['gt_style']}"
    return draw_contact_sheet(f"Ground truth, {len(cells)} of {len(cache)} samples: {of}", cells, meta["pc_range"])


if __name__ == "__main__":
    run_cli(main)
