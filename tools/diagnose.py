#!/usr/bin/env python3
"""What is inside a checkpoint's score on a split: every head, the scene through the LLM, queries, calibration, offsets.

It runs the split twice, the second time with the same scene and ground tokens, their mean, for every sample: what stays
is the decoder's own look at the images. At most what is lost came through the LLM: no training saw such tokens, so some
of the loss is surprise.

Examples:
  python tools/diagnose.py --checkpoint outputs/<run>/best_model.pth --dataroot D --gt-cache F.safetensors
  python tools/diagnose.py --checkpoint C --dataroot D --gt-cache F.safetensors --num-workers 8 --json diagnosis.json
"""

import argparse
import math
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.chamfer_ap import PROTOCOLS, hits_by_class, match_samples, summarize, thresholds_for  # noqa: E402
from evaluation.diagnosis import (  # noqa: E402
    CALIBRATION_M,
    NEAR_M,
    NEAR_SCORE,
    head_rows,
    near_counts,
    query_use,
    reliability_of,
    score_row,
)
from evaluation.flags import add_loader_arguments, add_weight_arguments, check_loader_arguments  # noqa: E402
from evaluation.line_offsets import BAND_EDGES_M, COVERED_M, WITHIN_M, offset_rows  # noqa: E402
from evaluation.min_scores import min_scores_of  # noqa: E402
from evaluation.vectors import ground_truth_of  # noqa: E402
from models.alarms import SPREADS  # noqa: E402
from tools.evaluate import open_cache, processes_for, warn_of_no_truth  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import default_dataroot, require_writable, write_json  # noqa: E402
from utils.frame import CLASSES  # noqa: E402
from utils.text_table import align_columns, format_score  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a .pth file of train_map_detection.py")
    parser.add_argument("--gt-cache", required=True, help="the split, made by tools/generate_gt_cache.py")
    parser.add_argument("--dataroot", default=default_dataroot(), help="folder with the images (default: %(default)s)")
    add_weight_arguments(parser)
    parser.add_argument("--protocol", default="maptr", choices=PROTOCOLS)
    add_loader_arguments(parser, "decode images and match lines")
    parser.add_argument("--json", help="write everything here too")
    args = parser.parse_args()
    check_loader_arguments(args)
    require_writable(args.json, inputs=(args.checkpoint, args.gt_cache))
    return args


def diagnose(args: argparse.Namespace) -> dict:
    """Run the checkpoint over the split twice and gather what is printed. Raises UserError for what does not fit."""
    # Imported here: they load torch, which the processes that match lines do without.
    from evaluation.head_outputs import heads_without_scene, observe_heads
    from evaluation.inference import build_loader, load_detector
    from utils.device import default_device
    from utils.distributed import in_batches

    cache = open_cache(args.gt_cache, None)
    if not len(cache):
        raise UserError(f"{args.gt_cache}: no samples, at least one is needed; make it from a split that has some")
    device = default_device()
    model, config, dtype = load_detector(args.checkpoint, device, args.llm_path, args.qformer_pretrained, cache)
    loader = build_loader(config, cache, in_batches(range(len(cache)), args.batch_size), args.dataroot,
                          args.num_workers)  # fmt: skip
    truth = ground_truth_of(cache)
    warn_of_no_truth(args.gt_cache, truth)
    settings = (device, dtype, config.pc_range)
    seen = observe_heads(model, loader, *settings)
    without_scene = heads_without_scene(model, loader, *settings, seen.scene_mean)

    thresholds = thresholds_for(config.pc_range)
    match = partial(match_samples, ground_truth=truth, protocol=args.protocol, thresholds=thresholds,
                    num_workers=processes_for(len(cache), args.num_workers))  # fmt: skip
    matches = [match(head) for head in seen.heads]
    results = [summarize(each, args.protocol, thresholds) for each in matches]
    same_scene = [summarize(match(head), args.protocol, thresholds) for head in without_scene]
    last = list(matches[-1].values())
    min_scores = min_scores_of(hits_by_class(matches[-1], len(thresholds)), thresholds)
    names = head_names(len(results), has_llm=model.llm is not None)
    heads = head_rows(names, results)
    return {
        "checkpoint": str(args.checkpoint),
        "gt_cache": str(args.gt_cache),
        "num_samples": len(cache),
        "protocol": args.protocol,
        "heads": heads,
        "result": results[-1] | {"mAP": heads[-1]["mAP"]},
        "mean_scene": [
            score_row(heads[index]["name"], result, heads[index]["mAP"])
            for index, result in zip((0, -1), same_scene, strict=True)
        ],
        "queries": query_use(seen.match_counts.cpu().numpy(), near_counts(last)),
        "calibration": reliability_of(last, thresholds),
        "offsets": offset_rows(seen.heads[-1], truth, min_scores),
        "spread": {name: None if math.isnan(value) else value for name, value in seen.spread.items()},
    }


def head_names(count: int, has_llm: bool) -> list[str]:
    """What each head reads, first to last."""
    layers = [f"+ decoder layer {layer}" for layer in range(1, count)]
    return ["LLM's states alone" if has_llm else "map queries alone (no LLM)", *layers]


def format_diagnosis(found: dict) -> str:
    """Everything as text of a page."""
    heads, lost, spread = found["heads"], found["mean_scene"], found["spread"]
    lines = [f"{found['checkpoint']}: {found['num_samples']} samples of {found['gt_cache']}", ""]
    lines += score_lines(f"Chamfer AP ({found['protocol']})", heads, "gain")
    behind = [row["name"].removeprefix("+ ") for row in heads[1:] if row["gain"] is not None and row["gain"] <= 0]
    if heads[0]["mAP"] is not None:
        better = "each layer is better than the one before"
        lines.append(f"not better than the one before: {', '.join(behind)}" if behind else better)
    lines += ["", *score_lines("all samples given the mean scene tokens", lost, "change"), ""]
    lines += [*query_lines(found["queries"]), "", *calibration_lines(found["calibration"]), ""]
    lines += [*offset_lines(found["offsets"]), ""]
    lines += align_columns([
        ["spread across scenes (near 0: collapsed)", *SPREADS.values()],
        ["over the whole split", *(format_score(spread[name]) for name in SPREADS)],
    ])  # fmt: skip
    return "\n".join(lines)


def score_lines(title: str, rows: list[dict], gain: str) -> list[str]:
    """Rows of scores as a table; gain: what its last column is called."""
    cells = [[title, *CLASSES, "mAP", gain]]
    for row in rows:
        change = "" if row["gain"] is None else f"{row['gain']:+.3f}"
        cells.append([row["name"], *(format_score(row[name]) for name in (*CLASSES, "mAP")), change])
    return align_columns(cells)


def query_lines(use: dict) -> list[str]:
    """The work of the queries, a line a question."""
    return [
        f"queries of the last head: {use['num_queries']}",
        f"  ever the Hungarian match of a line: {use['ever_matched']:.1%} (never: {use['never_matched']})",
        f"  effective number (exp of the entropy of the matches): {use['effective_number']:.1f}",
        f"  ever within {NEAR_M} m of a line of their class with a score above {NEAR_SCORE}: {use['ever_near']:.1%}",
    ]


def calibration_lines(found: dict) -> list[str]:
    """The reliability table of the last head and its error."""
    rows = [["score of the last head", "predictions", "mean score", f"precision at {CALIBRATION_M} m"]]
    for each in found["bins"]:
        scores = [format_score(each[name]) for name in ("mean_score", "precision")]
        rows.append([f"{each['from']:.1f} to {each['to']:.1f}", str(each["count"]), *scores])
    return [*align_columns(rows), f"expected calibration error: {format_score(found['expected_calibration_error'])}"]


def offset_lines(rows: list[dict]) -> list[str]:
    """How far the lines that somebody would draw lie from the true ones, a line a class."""
    bands = [f"{low:.0f} to {high:.0f} m away" for low, high in pairwise(BAND_EDGES_M)]
    cells = [["drawn from the score of the best F1 on", "score", "lines", "found", "length drawn", *bands]]
    for row in rows:
        offsets = ["-" if band["median"] is None else _band_cell(band) for band in row["bands"]]
        scores = [format_score(row[name]) for name in ("min_score", "found", "covered")]
        cells.append([row["name"], scores[0], str(row["drawn"]), *scores[1:], *offsets])
    limits = " and ".join(f"{limit:g}" for limit in WITHIN_M)
    return [
        *align_columns(cells),
        f"found: drawn lines with a true one; length drawn: of the true lines, within {COVERED_M:g} m of a drawn one",
        f"metres from found lines to the true ones: median (nine in ten places are below), shares within {limits} m",
    ]


def _band_cell(band: dict) -> str:
    """`0.04 (0.14)  83%  95%`"""
    shares = "".join(f"{share:5.0%}" for share in band["within"].values())
    return f"{band['median']:.2f} ({band['nine_in_ten']:.2f}){shares}"


def main() -> None:
    args = parse_args()
    found = diagnose(args)
    print(format_diagnosis(found))
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    run_cli(main)
