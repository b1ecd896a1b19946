"""Draw samples: python tools/visualize.py --gt-cache F --dataroot D --output out.png

One sample: bird's-eye panels and the six cameras with ground truth, and with predictions when there are any; of these
it prints how far each lies from the true line.
Many samples: a contact sheet of the best, worst or random ones, from above. A scene: an animated image.

Examples:
  python tools/visualize.py --gt-cache F --dataroot D --predictions P.json --index 7 --output sample.png
  python tools/visualize.py --gt-cache F --dataroot D --predictions P.json --best-f1 E.json --median --output m.png
  python tools/visualize.py --gt-cache F --predictions P.json --best-f1 E.json --sheet worst --output worst.png
  python tools/visualize.py --gt-cache F --dataroot D --checkpoint C.pth --scene scene-0103 --output scene.webp
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.gt_cache import GTCache  # noqa: E402
from data.images import load_image  # noqa: E402
from data.records import SampleRecord  # noqa: E402
from evaluation.flags import add_weight_arguments  # noqa: E402
from evaluation.formats import read_predictions  # noqa: E402
from evaluation.frames import to_lidar  # noqa: E402
from evaluation.line_offsets import WITHIN_M, coverage_rows, length_f1, line_rows  # noqa: E402
from evaluation.min_scores import add_score_arguments, min_scores_asked_for  # noqa: E402
from evaluation.pictures.animation import FORMATS, save_animation  # noqa: E402
from evaluation.pictures.canvas import SMOOTHING  # noqa: E402
from evaluation.pictures.contact_sheet import MAX_CELLS, Cell, draw_contact_sheet  # noqa: E402
from evaluation.pictures.drawing import FRAME, draw_sample  # noqa: E402
from evaluation.ranges import require_range  # noqa: E402
from evaluation.sample_f1 import F1_THRESHOLD, SampleF1, rank_by_f1, sample_f1  # noqa: E402
from evaluation.vectors import Vectors, no_vectors  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import default_dataroot, replacing, require_writable  # noqa: E402
from utils.frame import CLASSES  # noqa: E402
from utils.text_table import align_columns  # noqa: E402

MAX_FPS = 50.0  # GIF counts in hundredths of a second, and viewers slow down what is faster


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--gt-cache", required=True, help="from tools/generate_gt_cache.py")
    parser.add_argument("--dataroot", default=default_dataroot(), help="nuScenes folder (default: %(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--predictions", help="scored vectors as JSON, MapTR's or StreamMapNet's format")
    source.add_argument("--checkpoint", help="or a .pth file of train_map_detection.py that makes them")
    add_weight_arguments(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sample-token", help="the sample to draw")
    which.add_argument("--index", type=int, default=0, help="or its position in the cache (default 0)")
    which.add_argument(
        "--median", action="store_true",
        help=f"or the one in the middle of all samples by how much of drawn and true lines lie within {WITHIN_M[-1]} m "
        "of each other",
    )  # fmt: skip
    which.add_argument(
        "--sheet", choices=("best", "worst", "random"),
        help=f"many samples; best and worst by F1 at {F1_THRESHOLD} m of the predictions drawn",
    )  # fmt: skip
    which.add_argument("--scene", help="all samples of a scene in order of time, for instance scene-0103")
    parser.add_argument("--count", type=int, default=12, help="samples of a sheet (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choice (default 0)")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second (default 2, nuScenes' real time)")
    add_score_arguments(parser, default=0.3)
    parser.add_argument("--output", required=True, help="PNG file; with --scene .webp or .gif")
    args = parser.parse_args()
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError for what would fail only after minutes of work."""
    suffixes = tuple(FORMATS) if args.scene is not None else (".png",)
    if Path(args.output).suffix.lower() not in suffixes:
        kind = "an animated image" if args.scene is not None else "a picture"
        raise UserError(f"--output: {args.output}, {kind} ends in {' or '.join(suffixes)}; give such a name")
    judged = f"--sheet {args.sheet}" if args.sheet is not None else "--median" if args.median else None
    if judged and not (args.predictions or args.checkpoint):
        raise UserError(
            f"{judged}: no predictions, there is nothing to judge; give --predictions or --checkpoint "
            "(tools/inspect_gt.py draws ground truth alone)"
        )
    if not 1 <= args.count <= MAX_CELLS:
        raise UserError(f"--count: {args.count}, expected 1 to {MAX_CELLS}; give a number of samples in between")
    if not 0.0 < args.fps <= MAX_FPS:
        raise UserError(f"--fps: {args.fps}, expected more than 0 and at most {MAX_FPS:g}; 2 is real time")
    if args.seed < 0:
        raise UserError(f"--seed: {args.seed}, expected 0 or more; give another number")
    require_writable(args.output, inputs=(args.gt_cache, args.predictions, args.checkpoint, args.best_f1))


def main() -> None:
    args = parse_args()
    args.min_scores = min_scores_asked_for(args)
    cache = GTCache.open(args.gt_cache)
    cache.verify()
    if args.sheet is None and not os.path.isdir(args.dataroot):
        raise UserError(f"{args.dataroot}: no such folder, the images are expected in it; give it with --dataroot")
    if args.sheet is not None:
        draw_sheet(args, cache)
    elif args.scene is not None:
        draw_scene(args, cache)
    else:
        draw_one(args, cache)


def draw_one(args: argparse.Namespace, cache: GTCache) -> None:
    """Write the picture of one sample."""
    predictions = None
    if args.median:
        index, predictions = median_sample(args, cache)
    elif args.sample_token is not None:
        index = cache.index_of(args.sample_token)
    elif 0 <= args.index < len(cache):
        index = args.index
    else:
        raise UserError(
            f"{args.gt_cache}: no sample {args.index}, expected 0 to {len(cache) - 1}; give another --index"
        )
    record = cache[index]
    if predictions is None:
        (predictions,) = predictions_of(args, cache, [index]) or [None]
    ground_truth = Vectors(record.labels, record.pts_m)
    images = load_camera_images(record, args.dataroot)
    picture = draw_sample(record, images, ground_truth, predictions, cache.meta["pc_range"])
    save_png(args.output, picture, f"sample {record.sample_token}")
    if predictions is not None:
        for rows in (line_rows(predictions, ground_truth), coverage_rows(predictions, ground_truth)):
            print("\n".join(align_columns(rows)))


def median_sample(args: argparse.Namespace, cache: GTCache) -> tuple[int, Vectors]:
    """Position and predictions of the sample in the middle of all by length_f1; prints how it compares."""
    predictions = predictions_of(args, cache, range(len(cache)))
    ranked = []
    for index, vectors in enumerate(predictions):
        record = cache[index]
        value = length_f1(vectors, Vectors(record.labels, record.pts_m))
        if value is not None:
            ranked.append((value, index))
    if not ranked:
        raise UserError(f"{args.gt_cache}: no sample with ground truth or predictions, none is in the middle; take "
                        "another")
    ranked.sort()
    value, index = ranked[(len(ranked) - 1) // 2]
    print(f"in the middle of {len(ranked)} samples: {value:.2f} of drawn and true lines lie within {WITHIN_M[-1]} m of "
          f"each other (from {ranked[0][0]:.2f} to {ranked[-1][0]:.2f})")
    return index, predictions[index]


def draw_sheet(args: argparse.Namespace, cache: GTCache) -> None:
    """Write a contact sheet of the best, worst or random samples: ground truth beside predictions."""
    chosen = list(range(len(cache)))
    if args.sheet == "random":
        chosen = np.random.default_rng(args.seed).choice(len(cache), min(args.count, len(cache)), replace=False)
        chosen = sorted(chosen.tolist())
    predictions = predictions_of(args, cache, chosen)
    scores = []
    for index, vectors in zip(tqdm(chosen, "F1", disable=not sys.stderr.isatty()), predictions, strict=True):
        record = cache[index]
        scores.append(sample_f1(vectors, Vectors(record.labels, record.pts_m)))
    order = range(len(chosen)) if args.sheet == "random" else rank_by_f1(scores, args.sheet == "best")[: args.count]
    if not order:
        raise UserError(f"{args.gt_cache}: no sample with ground truth or predictions, nothing to rank; take another")
    cells = [sheet_cell(cache[chosen[i]], predictions[i], scores[i]) for i in order]
    split = f"{cache.meta['version']} {cache.meta['split']}"
    least = ", ".join(f"{name} {score:.3g}" for name, score in zip(CLASSES, args.min_scores, strict=True))
    if args.best_f1 is None:
        least = f"{args.score_threshold:g}"
    title = (
        f"{args.sheet.capitalize()} {len(cells)} of {len(cache)} samples ({split}), "
        f"F1 at {F1_THRESHOLD:g} m of predictions scored {least} or more"
    )
    sheet = draw_contact_sheet(title, cells, cache.meta["pc_range"])
    save_png(args.output, sheet, f"{args.sheet} {len(cells)} of {len(cache)} samples")


def sheet_cell(record: SampleRecord, predictions: Vectors, score: SampleF1) -> Cell:
    """One sample of a sheet: where it is, its figure, ground truth beside predictions."""
    figure = "nothing there, nothing predicted" if score.value is None else f"F1 {score.value:.2f}"
    caption = (
        f"{record.sample_token[:8]}  {record.scene_name}  {record.location}",
        f"{figure}:  {score.true} found, {score.missed} missed, {score.false} false",
    )
    ground_truth = Vectors(record.labels, record.pts_m)
    return Cell(caption, (("ground truth", ground_truth), ("prediction", predictions)))


def draw_scene(args: argparse.Namespace, cache: GTCache) -> None:
    """Write the animated image of a scene."""
    scenes = cache.meta["scenes"]
    if args.scene not in scenes:
        raise UserError(
            f"{args.gt_cache}: no scene {args.scene!r}, expected one of its {len(scenes)} scenes "
            f"({', '.join(scenes[:3])}{', ...' if len(scenes) > 3 else ''}); give another --scene"
        )
    indices = np.flatnonzero(cache.tensor("scene") == scenes.index(args.scene))
    indices = indices[np.argsort(cache.tensor("timestamp")[indices], kind="stable")].tolist()
    predictions = predictions_of(args, cache, indices) or [None] * len(indices)
    frames = scene_frames(cache, indices, predictions, args.dataroot)
    with replacing(args.output) as file:
        save_animation(file, frames, args.fps, Path(args.output).suffix.lower())
    megabytes = Path(args.output).stat().st_size / 1e6
    print(f"{args.output}: {args.scene}, {len(indices)} frames, {args.fps:g} a second, {megabytes:.1f} MB")


def scene_frames(
    cache: GTCache, indices: Sequence[int], predictions: Sequence[Vectors | None], dataroot: str | os.PathLike
) -> Iterator[Image.Image]:
    """Pictures of these samples one after the other, with the time since the first."""
    start = cache[indices[0]].timestamp
    for index, vectors in zip(tqdm(indices, "frames", disable=not sys.stderr.isatty()), predictions, strict=True):
        record = cache[index]
        seconds = (record.timestamp - start) / 1e6
        title = f"{record.scene_name}  {record.location}  {record.sample_token[:8]}  {seconds:.1f} s"
        images = load_camera_images(record, dataroot, FRAME.camera_width * SMOOTHING)
        ground_truth = Vectors(record.labels, record.pts_m)
        yield draw_sample(record, images, ground_truth, vectors, cache.meta["pc_range"], FRAME, title)


def predictions_of(args: argparse.Namespace, cache: GTCache, indices: Sequence[int]) -> list[Vectors] | None:
    """Vectors to draw for these samples in the LiDAR frame, None when none are asked for.

    A sample without an entry has no vectors. Raises UserError when no entry is for a sample of the cache.
    """
    frame = "lidar"
    if args.predictions:
        by_token, frame, pc_range = read_predictions(args.predictions)
        if by_token and by_token.keys().isdisjoint(cache.sample_tokens):
            raise UserError(
                f"{args.predictions}: none of its {len(by_token)} sample tokens (the first: {next(iter(by_token))}) "
                f"is in {args.gt_cache}, expected split {cache.meta['split']}; give predictions of that split"
            )
        require_range(args.predictions, pc_range, cache.meta["pc_range"])
    elif args.checkpoint:
        by_token = run_checkpoint(args, cache, indices)
    else:
        return None
    found, missing = [], []
    for index in indices:
        token = cache.sample_tokens[index]
        if token not in by_token:
            missing.append(token)
        vectors = to_lidar(by_token.get(token, no_vectors(scored=True)), frame, cache[index])
        found.append(vectors.at_least(args.min_scores))
    if missing:
        print(
            f"warning: {len(missing)} of {len(found)} samples (the first: {missing[0]}) have no entry in the "
            "predictions and are drawn without",
            file=sys.stderr,
        )
    return found


def run_checkpoint(args: argparse.Namespace, cache: GTCache, indices: Sequence[int]) -> dict[str, Vectors]:
    """What the checkpoint's detector predicts for these samples."""
    # Imported here: it loads torch, which pictures of a file do without.
    from evaluation.inference import predict_samples
    from utils.distributed import in_batches

    batches = in_batches(indices, batch_size=4)
    weights = (args.llm_path, args.qformer_pretrained)
    return predict_samples(args.checkpoint, cache, batches, args.dataroot, 0, *weights)[0]


def load_camera_images(
    record: SampleRecord, dataroot: str | os.PathLike, width: int | None = None
) -> list[Image.Image]:
    """The six photographs of a sample in the order of CAMERAS, `width` pixels wide or at full size."""
    images = []
    for path, source in zip(record.image_paths, record.image_sizes.tolist(), strict=True):
        size = source if width is None else (width, round(width * source[1] / source[0]))
        window = np.array([0, 0, *source])
        images.append(load_image(os.path.join(dataroot, path), source, window, size[::-1], record.sample_token))
    return images


def save_png(path: str, picture: Image.Image, content: str) -> None:
    """Write a picture and say so."""
    with replacing(path) as file:
        picture.save(file, "PNG")
    print(f"{path}: {content}, {picture.width}x{picture.height} pixels")


if __name__ == "__main__":
    run_cli(main)
