"""Predict vector maps with a checkpoint; neither ground truth nor the map expansion is needed.

The samples are those of a GT cache or, with --version, of the nuScenes tables (all scenes unless --split is given,
so that v1.0-test works). --format maptr is read by tools/evaluate.py and tools/visualize.py, which take the LiDAR
frame, its default; geojson is for geographic information systems and gives longitude and latitude by default.

Examples:
  python tools/predict.py --checkpoint outputs/<run>/best_model.pth --gt-cache F --dataroot D --output predictions.json
  python tools/predict.py --checkpoint outputs/<run>/best_model.pth --dataroot D --version v1.0-test \\
      --format geojson --score-threshold 0.3 --output lines.geojson
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.gt_cache import GTCache  # noqa: E402
from data.images import image_exists  # noqa: E402
from data.records import SampleRecord  # noqa: E402
from data.splits import SPLITS, resolve_split  # noqa: E402
from evaluation.flags import add_loader_arguments, add_weight_arguments, check_loader_arguments  # noqa: E402
from evaluation.formats import write_maptr_predictions, write_streammapnet_predictions  # noqa: E402
from evaluation.geojson import FRAMES, in_frame, require_origins, write_geojson  # noqa: E402
from evaluation.inference import predict_samples  # noqa: E402
from evaluation.min_scores import add_score_arguments, min_scores_asked_for  # noqa: E402
from evaluation.vectors import Vectors  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.distributed import in_batches  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import default_dataroot, require_writable  # noqa: E402
from utils.frame import CLASSES  # noqa: E402

# Format -> the frame its readers expect.
FORMATS = {"maptr": "lidar", "streammapnet": "ego", "geojson": "wgs84"}
# What nuScenes submissions say of their input.
MODALITY = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a .pth file of train_map_detection.py")
    add_weight_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gt-cache", help="samples of a cache, made by tools/generate_gt_cache.py")
    source.add_argument("--version", help="samples of the nuScenes tables of this version, for instance v1.0-test")
    parser.add_argument("--split", choices=SPLITS, help="with --version: only this split's scenes (default: all)")
    parser.add_argument("--dataroot", default=default_dataroot(), help="nuScenes folder (default: %(default)s)")
    parser.add_argument(
        "--sample-token", nargs="+", metavar="T", help="only these samples, each once (default: all)"
    )
    parser.add_argument("--output", required=True, help="the file to write")
    parser.add_argument("--format", default="maptr", choices=FORMATS)
    parser.add_argument(
        "--frame", choices=FRAMES, help="default: lidar for maptr, ego for streammapnet, wgs84 for geojson"
    )
    add_score_arguments(parser, default=0.0, hint=", none; average precision needs them all")
    add_loader_arguments(parser)
    args = parser.parse_args()
    args.frame = args.frame or FORMATS[args.format]
    if args.frame == "wgs84" and args.format != "geojson":
        raise UserError(f"--frame wgs84: --format {args.format} is in metres; give --format geojson or --frame global")
    if args.split and not args.version:
        raise UserError(f"--split {args.split}: the samples are those of --gt-cache; leave it out or give --version")
    check_loader_arguments(args)
    require_writable(args.output, inputs=(args.checkpoint, args.gt_cache, args.best_f1))
    return args


def open_samples(args: argparse.Namespace) -> Sequence[SampleRecord]:
    """The cache's samples, or those of the tables in memory."""
    if args.gt_cache:
        cache = GTCache.open(args.gt_cache)
        cache.verify()
        return cache
    split = resolve_split(args.split, args.version) if args.split else None
    from data.nuscenes_reader import load_tables, read_records  # here: it needs the devkit, a cache does not

    return read_records(load_tables(args.dataroot, args.version), split)


def choose_samples(samples: Sequence[SampleRecord], tokens: Sequence[str] | None, source: str) -> dict[str, int]:
    """Position of each wanted sample by its token, in the order asked for; all samples when tokens is None.

    Raises UserError for a token that `source` does not hold.
    """
    index_of = {samples[index].sample_token: index for index in range(len(samples))}
    if tokens is None:
        return index_of
    unknown = [token for token in tokens if token not in index_of]
    if unknown:
        raise UserError(
            f"--sample-token {unknown[0]}: not among the {len(index_of)} samples of {source}; "
            "give a token of this split and version"
        )
    return {token: index_of[token] for token in tokens}


def check_samples(records: dict[str, SampleRecord], args: argparse.Namespace) -> None:
    """Raise UserError for what would otherwise stop the run near its end: an absent image, an unknown city."""
    if not os.path.isdir(args.dataroot):
        raise UserError(f"{args.dataroot}: no such folder; give the nuScenes folder with --dataroot")
    if args.frame == "wgs84":
        require_origins(record.location for record in records.values())
    for token, record in records.items():
        for path in record.image_paths:
            if not image_exists(args.dataroot, path):
                raise UserError(
                    f"{os.path.join(args.dataroot, path)}: no such image, sample {token} needs it; unpack the "
                    "nuScenes archive with it, or choose the others with --sample-token"
                )


def write_predictions(
    args: argparse.Namespace,
    predictions: dict[str, Vectors],
    records: dict[str, SampleRecord],
    pc_range: Sequence[float],
) -> None:
    """Write vectors (metres, LiDAR frame) in the format and frame that were asked for."""
    checkpoint = Path(args.checkpoint).resolve()
    meta = MODALITY | {
        "frame": args.frame,
        "checkpoint": f"{checkpoint.parent.name}/{checkpoint.name}",  # the run's folder tells checkpoints apart
        "pc_range": list(pc_range),
        "min_scores": dict(zip(CLASSES, args.min_scores.tolist(), strict=True)),
    }
    if args.format == "geojson":
        write_geojson(args.output, predictions, records, args.frame, meta)
        return
    moved = {
        token: Vectors(
            vectors.labels, [in_frame(pts, records[token], args.frame) for pts in vectors.pts_m], vectors.scores
        )
        for token, vectors in predictions.items()
    }
    write = write_maptr_predictions if args.format == "maptr" else write_streammapnet_predictions
    write(args.output, moved, meta)


def main() -> None:
    args = parse_args()
    args.min_scores = min_scores_asked_for(args)
    samples = open_samples(args)
    chosen = choose_samples(samples, args.sample_token, args.gt_cache or os.path.join(args.dataroot, args.version))
    records = {token: samples[index] for token, index in chosen.items()}
    check_samples(records, args)
    batches = in_batches(list(chosen.values()), args.batch_size)
    predictions, config, seconds = predict_samples(
        args.checkpoint, samples, batches, args.dataroot, args.num_workers, args.llm_path, args.qformer_pretrained
    )
    predictions = {token: vectors.at_least(args.min_scores) for token, vectors in predictions.items()}
    write_predictions(args, predictions, records, config.pc_range)
    lines = sum(map(len, predictions.values()))
    print(
        f"{args.output}: {len(predictions)} samples, {lines} lines, {args.format}, {args.frame} frame, "
        f"{seconds:.1f} s, {len(predictions) / seconds:.2f} samples/s"
    )


if __name__ == "__main__":
    run_cli(main)
