#!/usr/bin/env python3
"""A run as one HTML page: scores, curves, a gallery of samples, settings. It opens from disk, without a network.

Checkpoint, cache and images are found from the run's folder and its config.json unless they are given; the page
says what was missing.

Examples:
  python tools/report.py --run outputs/<run>
  python tools/report.py --run outputs/<run> --gt-cache F.safetensors --dataroot D --output report.html
"""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.gt_cache import GTCache, default_cache_path, range_name  # noqa: E402
from data.splits import SPLITS  # noqa: E402
from evaluation.chamfer_ap import PROTOCOLS, hits_by_class, match_samples, summarize, thresholds_for  # noqa: E402
from evaluation.flags import add_loader_arguments, add_weight_arguments, check_loader_arguments  # noqa: E402
from evaluation.inference import predict_samples  # noqa: E402
from evaluation.min_scores import min_scores_of  # noqa: E402
from evaluation.report.gallery import GallerySample, choose_samples, judge_samples, picture_sample  # noqa: E402
from evaluation.report.page import Evaluation, render_report  # noqa: E402
from evaluation.report.run_folder import RunFolder, read_run  # noqa: E402
from evaluation.sample_f1 import SampleF1  # noqa: E402
from evaluation.vectors import Vectors, ground_truth_of  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.distributed import in_batches  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import default_dataroot, replacing, require_writable  # noqa: E402
from utils.machine import machine  # noqa: E402

MAX_GALLERY = 8  # samples of each kind: 24 of them are about 3 MB
@dataclass(frozen=True)
class Inputs:
    """What an evaluation needs."""

    checkpoint: Path
    gt_cache: Path
    dataroot: Path


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--run", required=True, help="output folder of train_map_detection.py")
    parser.add_argument("--output", help="HTML file to write (default: report.html in the run's folder)")
    parser.add_argument("--checkpoint", help="default: the run's best_model.pth, else its last one")
    parser.add_argument("--gt-cache", help="default: the cache that the run validated on")
    parser.add_argument("--dataroot", help="folder with the images (default: that of the run)")
    add_weight_arguments(parser)
    parser.add_argument("--protocol", default="maptr", choices=PROTOCOLS)
    parser.add_argument(
        "--gallery", type=int, default=4, help="best, median and worst samples, so many of each (default 4)"
    )
    parser.add_argument("--no-evaluation", action="store_true", help="only what the run's own files say")
    add_loader_arguments(parser)
    args = parser.parse_args()
    if not 0 <= args.gallery <= MAX_GALLERY:
        raise UserError(f"--gallery: {args.gallery}, expected 0 to {MAX_GALLERY}; more would make the page too heavy")
    check_loader_arguments(args)
    given = [name for name in ("checkpoint", "gt_cache", "dataroot") if getattr(args, name)]
    if args.no_evaluation and given:
        raise UserError(f"--no-evaluation --{given[0].replace('_', '-')}: one says the opposite of the other; drop one")
    return args


def find_inputs(args: argparse.Namespace, run: RunFolder) -> Inputs | str:
    """What to evaluate and on what, or a sentence saying which part cannot be found.

    What the user names is taken as it is: whoever opens it complains if it is not there.
    """
    checkpoint = args.checkpoint or run.checkpoint()
    if checkpoint is None:
        return "Not evaluated: the run's folder holds no checkpoint."
    recorded = run.setting("dataroot")
    found = isinstance(recorded, str) and os.path.isdir(recorded)
    dataroot = Path(args.dataroot or (recorded if found else default_dataroot()))
    gt_cache = args.gt_cache or _recorded_cache(run, dataroot)
    if not args.gt_cache and not os.path.isfile(gt_cache):
        return f"Not evaluated: no ground-truth cache at {gt_cache}; --gt-cache and --dataroot say where it is."
    if not args.dataroot and not os.path.isdir(dataroot):
        return f"Not evaluated: no folder {dataroot} with the images; --dataroot says where it is."
    return Inputs(Path(checkpoint), Path(gt_cache), dataroot)


def _recorded_cache(run: RunFolder, dataroot: Path) -> Path:
    """The cache that the run validated on; where it was not named, or is gone, its usual place in dataroot."""
    named = run.setting("gt_cache_val")
    if isinstance(named, str) and os.path.isfile(named):
        return Path(named)
    split = run.setting("val_split")
    names = [str(run.setting(name, value)) for name, value in (("version", "v1.0-trainval"), ("pc_range", "60x30"))]
    return default_cache_path(dataroot, names[0], split if split in SPLITS else "val", names[1],
                              str(run.setting("gt_style", "maptr")))  # fmt: skip


def evaluate_run(args: argparse.Namespace, inputs: Inputs) -> Evaluation:
    """Predict the split, score it, and draw the gallery. Raises UserError for whatever does not fit together."""
    cache = GTCache.open(inputs.gt_cache)
    cache.verify()
    predictions, config, _ = predict_samples(
        inputs.checkpoint, cache, in_batches(range(len(cache)), args.batch_size), inputs.dataroot, args.num_workers,
        args.llm_path, args.qformer_pretrained, "evaluate",
    )  # fmt: skip
    ground_truth = ground_truth_of(cache)
    thresholds = thresholds_for(config.pc_range)
    matches = match_samples(predictions, ground_truth, args.protocol, thresholds)
    hits = hits_by_class(matches, len(thresholds))
    min_scores = min_scores_of(hits, thresholds)
    shown, scores = judge_samples(predictions, ground_truth, min_scores)
    command = ["python", "tools/evaluate.py", "--checkpoint", inputs.checkpoint, "--gt-cache", inputs.gt_cache,
               "--dataroot", inputs.dataroot, "--protocol", args.protocol]  # fmt: skip
    meta = cache.meta
    return Evaluation(
        checkpoint=inputs.checkpoint.name,
        data=f"{meta['version']} {meta['split']}, {range_name(config.pc_range)} m, {meta['gt_style']} style",
        gt_digest=meta["digest"],
        num_samples=len(cache),
        command=shlex.join(map(str, command)),
        result=summarize(matches, args.protocol, thresholds),
        hits=hits,
        min_scores=min_scores.tolist(),
        gallery=draw_gallery(cache, inputs.dataroot, shown, scores, args.gallery),
    )


def draw_gallery(
    cache: GTCache, dataroot: Path, shown: Mapping[str, Vectors], scores: list[SampleF1], count: int
) -> dict[str, list[GallerySample]]:
    """Pictures of `count` best, median and worst samples; scores in the order of the cache."""
    gallery = {}
    scenes = cache.tensor("scene").tolist()
    for title, indices in choose_samples(scores, scenes, count).items():
        records = [cache[index] for index in indices]
        gallery[title] = [
            picture_sample(record, shown[record.sample_token], scores[index], dataroot, cache.meta["pc_range"])
            for index, record in zip(indices, records, strict=True)
        ]
    return gallery


def main() -> None:
    args = parse_args()
    run = read_run(args.run)
    output = Path(args.output or run.path / "report.html")
    inputs = "Not evaluated: --no-evaluation was given." if args.no_evaluation else find_inputs(args, run)
    read = () if isinstance(inputs, str) else (inputs.checkpoint, inputs.gt_cache)
    require_writable(output, inputs=(*read, run.path / "config.json", run.path / "metrics.jsonl"))
    evaluation = None if isinstance(inputs, str) else evaluate_run(args, inputs)
    missing = inputs if isinstance(inputs, str) else ""
    here = machine()
    versions = {"python": here["python"]} | {name: found or "not installed" for name, found in here["packages"].items()}
    page = render_report(run, evaluation, missing, versions)
    content = page.encode("utf-8", errors="replace")  # names of files may hold what is no text
    with replacing(output) as file:
        file.write(content)
    score = f"mAP {evaluation.result['mAP']:.3f} on {evaluation.num_samples} samples" if evaluation else missing
    print(f"{output}: {score.rstrip('.')}, {len(content) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_cli(main)
