"""Six JPEGs to the network's input: ms a sample on one thread, beside Pillow's full decode, and workers' samples/s.

Three ways take turns: the yardstick, what image processors of Hugging Face do (Pillow decodes in full, resizes with the
bicubic filter, then a float tensor is normalised); the limit (Pillow decodes at the size that the loader chooses, and
nothing else); the loader, to uint8, which the device normalises. The difference is that of the loader's images to the
yardstick's in the same window.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from data.dataset import MapDetectionDataset, collate
from data.gt_cache import GTCache
from data.images import decoder_reduction
from data.pixels import load_pixels
from data.records import SampleRecord
from data.transforms import Augmentation, crop_window
from evaluation.inference import build_dataset
from models.config import PRESETS, ModelConfig
from models.vision import CLIP_MEAN, CLIP_STD
from tools.benchmarks.common import rounds, spread, timed
from tools.benchmarks.process_tree import private_mb
from utils.errors import UserError
from utils.frame import CAMERAS

RENDERED_SIZE = (1600, 900)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", nargs="+",
        help="six JPEGs, or a folder with as many in it or below (default: six rendered ones of 1600x900)",
    )  # fmt: skip
    parser.add_argument("--gt-cache", help="instead of --images: real samples; needs --dataroot")
    parser.add_argument("--dataroot", help="where the images of --gt-cache lie")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["base", "tiny"], help="input sizes")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--num-workers", type=int, nargs="*", default=[0, 1, 2], help="of each loader to time")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--batches", type=int, default=10, help="of a timed pass of a loader; there are three")


def run(args: argparse.Namespace) -> dict:
    """Measure and print; returns the figures by preset, times in milliseconds unless the name says otherwise."""
    if min(args.repeats, args.batch_size, args.batches) < 1 or min(args.warmup, 0, *args.num_workers) < 0:
        raise UserError(
            "--repeats, --batch-size, --batches: expected at least 1; --warmup, --num-workers: at least 0"
        )
    result = {}
    with samples_of(args) as (samples, dataroot):
        for preset in args.presets:
            dataset = build_dataset(PRESETS[preset], samples, dataroot)
            result[preset] = one_thread(PRESETS[preset], dataset, args)
            print(f"{preset}, {format_one_thread(result[preset])}")
            result[preset]["loaders"] = [throughput(dataset, workers, args) for workers in args.num_workers]
            for found in result[preset]["loaders"]:
                memory = f", {found['private_mb']:.0f} MB of its own a worker" if found["private_mb"] else ""
                print(
                    f"  DataLoader, --num-workers {found['num_workers']}: "
                    f"{found['samples_per_s']['median']:.1f} samples/s{memory}"
                )
    return result


def one_thread(config: ModelConfig, dataset: MapDetectionDataset, args: argparse.Namespace) -> dict:
    """The three ways on the first sample's six images."""
    record = dataset.cache[0]
    size = config.image_size
    sources = [tuple(source) for source in record.image_sizes.tolist()]
    windows = [crop_window(source, config.crop_top) for source in sources]
    paths = [str(Path(dataset.dataroot) / path) for path in record.image_paths]
    reductions = [decoder_reduction(window, size) for window in windows]

    def decode_each() -> None:
        for path, reduction in zip(paths, reductions, strict=True):
            bare_decode(path, reduction)

    work = {
        "yardstick_ms": lambda: torch.stack([full_quality(*each, size) for each in zip(paths, windows, strict=True)]),
        "bare_decode_ms": decode_each,
        "ms": lambda: dataset.load_cameras(record, Augmentation()),
    }
    # Loaders also make batches. Once such a large block is given back the C library keeps the memory of images, too,
    # which it would else ask for again each time.
    collate([dataset[0]] * args.batch_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds, ratios = rounds(work, args.warmup, args.repeats)
    finally:
        torch.set_num_threads(threads)
    found: dict = {name: spread(1e3 * values) for name, values in seconds.items()}
    return found | {
        "image_size": list(size),
        "source_sizes": sources,
        "decoder_reductions": reductions,
        "yardstick_ratio": ratios("yardstick_ms", "ms"),
        "bare_decode_ratio": ratios("ms", "bare_decode_ms"),
        "difference": difference(paths, sources, windows, size),
    }


def format_one_thread(found: dict) -> str:
    """The three ways as lines of text."""
    height, width = found["image_size"]
    whole, bare, ours = (found[name] for name in ("yardstick_ms", "bare_decode_ms", "ms"))
    sources = ", ".join(f"{w}x{h}" for w, h in sorted(set(found["source_sizes"])))
    reductions = ", ".join(str(reduction) for reduction in sorted(set(found["decoder_reductions"])))
    return (
        f"{len(found['source_sizes'])} images of {sources} to {width}x{height}, one thread, ms a sample "
        f"(10 to 90 %), {ours['count']} rounds:\n"
        f"  Pillow, full decode and bicubic  {whole['median']:6.1f} ({whole['p10']:.1f} to {whole['p90']:.1f})\n"
        f"  bare decode at 1/{reductions}              {bare['median']:6.1f} ({bare['p10']:.1f} to {bare['p90']:.1f})\n"
        f"  this loader                      {ours['median']:6.1f} ({ours['p10']:.1f} to {ours['p90']:.1f})\n"
        f"  {found['yardstick_ratio']['median']:.1f} times faster than Pillow's (aim: at least 4), "
        f"{found['bare_decode_ratio']['median']:.2f} times the bare decode (aim: at most 1.3), mean difference "
        f"{found['difference']:.2f}/255 (aim: below 2)"
    )


def full_quality(path: str, window: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A window of a JPEG, decoded in full, resized by Pillow's bicubic filter and normalised: float [3, H, W]."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    image = image.resize(size[::-1], Image.Resampling.BICUBIC, box=tuple(window))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - _per_channel(CLIP_MEAN)) / _per_channel(CLIP_STD)


def bare_decode(path: str, reduction: int) -> Image.Image:
    """A JPEG 1, 2, 4 or 8 times smaller, and nothing else."""
    with Image.open(path) as image:
        image.draft("RGB", (image.width // reduction, image.height // reduction))
        image.load()
    return image


def difference(
    paths: Sequence[str], sources: Sequence[tuple[int, int]], windows: Sequence[np.ndarray], size: tuple[int, int]
) -> float:
    """Mean absolute difference of load_pixels and full_quality in grey levels, of 255."""
    levels = []
    for path, source, window in zip(paths, sources, windows, strict=True):
        pixels, shown = load_pixels(path, source, window, size, "benchmark")
        wanted = full_quality(path, shown, size) * _per_channel(CLIP_STD) + _per_channel(CLIP_MEAN)
        levels.append((pixels.float() - 255 * wanted).abs().mean())
    return float(torch.stack(levels).mean())


def throughput(dataset: MapDetectionDataset, num_workers: int, args: argparse.Namespace) -> dict:
    """Samples/s of a DataLoader whose workers have started and last, and their private memory in MB."""
    indices = [index % len(dataset) for index in range(args.batches * args.batch_size)]
    loader = DataLoader(
        dataset, args.batch_size, sampler=indices, num_workers=num_workers, collate_fn=collate,
        persistent_workers=num_workers > 0, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip

    def one_pass() -> None:
        for _ in loader:
            pass

    others = set(multiprocessing.active_children())
    one_pass()
    rates = [len(indices) / timed(one_pass)[1] for _ in range(3)]
    workers = [process for process in multiprocessing.active_children() if process not in others]
    memory = max((private_mb(process.pid) for process in workers), default=None)
    return {"num_workers": num_workers, "samples_per_s": spread(rates), "private_mb": memory}


@contextmanager
def samples_of(args: argparse.Namespace) -> Iterator[tuple[GTCache | list[SampleRecord], Path]]:
    """The samples that the flags name and the folder of their images, which may be there no longer than this context.

    Raises UserError for flags that do not go together and for images that are not there.
    """
    if bool(args.gt_cache) != bool(args.dataroot) or (args.gt_cache and args.images):
        raise UserError("--gt-cache and --dataroot go together, and without --images; give both or neither")
    if args.gt_cache:
        yield GTCache.open(args.gt_cache), Path(args.dataroot)
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = image_paths(args.images or [rendered_images(Path(folder) / "world")])
        yield [record_of(paths)], Path("/")


def image_paths(given: Sequence[str | Path]) -> list[Path]:
    """The six JPEGs that --images names."""
    found = list(map(Path, given))
    if len(found) == 1 and found[0].is_dir():
        found = sorted(path for path in found[0].rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(found) != len(CAMERAS):
        raise UserError(f"--images {given[0]}: {len(found)} JPEGs, expected {len(CAMERAS)}; name as many files")
    for path in found:
        if not path.is_file():
            raise UserError(f"--images {path}: no such file; name {len(CAMERAS)} JPEGs or their folder")
    return [path.resolve() for path in found]


def rendered_images(world: Path) -> Path:
    """Folder with the images of one rendered key frame."""
    # Imported here: it loads the renderer, which real images do without.
    from data.synthetic.plan import WorldSettings
    from data.synthetic.world import write_world

    write_world(world, WorldSettings("v1.0-mini", ("scene-0061",), (), 1, seed=0, image_size=RENDERED_SIZE))
    return world / "samples"


def record_of(paths: Sequence[Path]) -> SampleRecord:
    """A sample with these images; calibration and ground truth, which take no time, say nothing."""
    sizes = []
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except OSError as error:
            raise UserError(f"--images {path}: not a picture ({error}); name JPEGs") from error
    return bare_record(paths, sizes)


def bare_record(paths: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> SampleRecord:
    """A sample with images of these sizes (W, H), which need not be there, and nothing else."""
    pose = np.eye(4)
    poses = np.tile(pose, (len(CAMERAS), 1, 1))
    return SampleRecord(
        sample_token="benchmark", scene_name="benchmark", location="boston-seaport", timestamp=0,
        image_paths=tuple(map(str, paths)), image_sizes=np.array(sizes), camera_intrinsic=poses[:, :3, :3],
        cam2lidar=poses, lidar2global=pose, ego2global=pose, ground_z=0.0, labels=np.zeros(0, np.int64), pts_m=[],
    )  # fmt: skip


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]
