"""Draw a sample: python tools/visualize.py --gt-cache F --dataroot D --output out.png

Bird's-eye panels and the six cameras with ground truth, and with predictions when a file of them is given.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from data.gt_cache import GTCache  # noqa: E402
from data.images import load_image  # noqa: E402
from data.records import SampleRecord  # noqa: E402
from evaluation.drawing import draw_sample  # noqa: E402
from evaluation.formats import read_predictions  # noqa: E402
from evaluation.vectors import Vectors, no_vectors  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import default_dataroot, replacing  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gt-cache", required=True, help="from tools/generate_gt_cache.py")
    parser.add_argument(
        "--dataroot", default=None, help="nuScenes folder (default: $NUSCENES_DATAROOT, else data/nuscenes)"
    )
    parser.add_argument("--predictions", help="scored vectors as JSON, MapTR's or StreamMapNet's format")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sample-token", help="the sample to draw")
    which.add_argument("--index", type=int, default=0, help="or its position in the cache (default 0)")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="leave out predictions below")
    parser.add_argument("--output", required=True, help="PNG file")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cache = GTCache.open(args.gt_cache)
    if args.sample_token is not None:
        index = cache.index_of(args.sample_token)
    elif 0 <= args.index < len(cache):
        index = args.index
    else:
        raise UserError(
            f"{args.gt_cache}: no sample {args.index}, expected 0 to {len(cache) - 1}; give another --index"
        )
    record = cache[index]
    dataroot = args.dataroot or default_dataroot()
    predictions = None
    if args.predictions:
        by_token = read_predictions(args.predictions)
        predictions = by_token.get(record.sample_token, no_vectors(scored=True))
        predictions = predictions.select(predictions.scores >= args.score_threshold)
    ground_truth = Vectors(record.labels, record.pts_m)
    images = load_camera_images(record, dataroot)
    picture = draw_sample(record, images, ground_truth, predictions, cache.meta["pc_range"])
    with replacing(args.output) as file:
        picture.save(file, "PNG")
    print(f"{args.output}: sample {record.sample_token}, {picture.width}x{picture.height} pixels")


def load_camera_images(record: SampleRecord, dataroot: str | os.PathLike) -> list[Image.Image]:
    """The six photographs of a sample at full size, in the order of CAMERAS."""
    return [
        load_image(
            os.path.join(dataroot, path), (width, height), np.array([0, 0, width, height]), (height, width),
            record.sample_token,
        )
        for path, (width, height) in zip(record.image_paths, record.image_sizes.tolist(), strict=True)
    ]  # fmt: skip


if __name__ == "__main__":
    run_cli(main)
