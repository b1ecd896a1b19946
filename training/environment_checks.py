"""What training needs around it: GPU, disk, dataset, maps, caches, weights. The checks fetch and write nothing."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import torch

from data.gt_cache import GTCache, default_cache_path, generate_command
from data.images import image_exists
from utils.checklist import Caution, Skipped
from utils.errors import UserError
from utils.files import default_dataroot, require_writable
from utils.frame import CAMERAS, PC_RANGES

# 10^9 bytes that a run's checkpoints take: --keep-last 3, best, final and one being written, in `base` 1.67 GB each,
# with --ema-decay 2.23.
CHECKPOINTS_GB = {"tiny": 1, "small": 1, "base": 14}
_CACHE_GB = 1
_IMAGE_SAMPLES = 100  # key frames of each cache, evenly spread, at least so many have their images looked for
_DRIVER_TIMEOUT_S = 20


class EnvironmentChecks:
    """The checks of a machine and of the dataset on it; args as test_training_setup.py has them."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.dataroot = Path(args.dataroot or default_dataroot())
        given = args.dataroot or os.environ.get("NUSCENES_DATAROOT") or args.gt_cache_train or args.gt_cache_val
        self.wants_dataset = bool(given) or self.dataroot.exists()
        self.splits = {"train": args.train_split, "val": args.val_split}
        self.cache_paths = {
            kind: Path(path or default_cache_path(self.dataroot, args.version, self.splits[kind], args.pc_range,
                                                  args.gt_style))
            for kind, path in (("train", args.gt_cache_train), ("val", args.gt_cache_val))
        }
        self.caches: dict[str, GTCache] = {}  # by kind, those that passed
        self._cities: list[str] = []

    def check_gpu(self) -> str:
        """The GPUs and what training takes of them. Raises UserError when there is one that torch cannot use."""
        if not torch.cuda.is_available():
            return self._without_gpu()
        memory_free, memory = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        try:
            torch.ones(2, device="cuda").sum().item()
        except RuntimeError as error:
            capability = "{}.{}".format(*torch.cuda.get_device_capability())
            raise UserError(f"{name}, compute capability {capability}: torch {torch.__version__} cannot compute on it "
                            f"({str(error).splitlines()[0]}); install a torch built for it (pytorch.org)") from error
        others = "bf16 works too" if torch.cuda.is_bf16_supported(including_emulation=False) else "it has no bf16"
        return (f"{torch.cuda.device_count()} x {name}, {memory_free / 1e9:.1f} of {memory / 1e9:.1f} GB free, CUDA "
                f"{torch.version.cuda}; training takes fp16, {others}; python tools/benchmark.py memory says what fits")

    def _without_gpu(self) -> str:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        driver = _driver_of_gpu()
        if driver and hidden is None:
            if torch.version.cuda is None:
                raise UserError(f"{driver}: torch {torch.__version__} is built without CUDA; "
                                "pip install --force-reinstall torch torchvision")
            raise UserError(f"{driver}: torch, built for CUDA {torch.version.cuda}, finds no GPU; update the driver, "
                            "or install a torch built for an older CUDA (pytorch.org)")
        reason = f"CUDA_VISIBLE_DEVICES={hidden} hides it" if driver else "nvidia-smi finds none"
        text = f"none ({reason}); training takes the CPU and fp32"
        if self.args.preset == "base":
            fix = "unset CUDA_VISIBLE_DEVICES" if driver else "install the GPU's driver"
            raise Caution(f"{text}, too slow for --preset base; {fix}, or take --preset tiny")
        return text

    def check_disk(self) -> str:
        """Space for checkpoints. Raises UserError when there is too little, Caution when a cache has no place."""
        output, wanted = Path(self.args.output_dir), CHECKPOINTS_GB[self.args.preset]
        require_writable(output / "config.json")
        free = _free_gb(output)
        if free < wanted:
            raise UserError(f"{output}: {free:.1f} GB free, the checkpoints of a run take {wanted} GB; free some "
                            "space or give another --output-dir (with --keep-last 1 a run takes a third less)")
        missing = [path for path in self.cache_paths.values() if not path.exists()]
        if self.dataroot.is_dir() and missing:
            try:
                require_writable(*missing)
            except UserError as error:
                raise Caution(f"{error} with tools/generate_gt_cache.py --output") from error
            if _free_gb(missing[0]) < _CACHE_GB:
                raise Caution(f"{missing[0].parent}: {_free_gb(missing[0]):.1f} GB free, the caches may take "
                              f"{_CACHE_GB} GB; free some space, or give tools/generate_gt_cache.py another --output")
        if self.args.unfreeze_llm:
            raise Caution(f"{free:.0f} GB free in {output}; with --unfreeze-llm a checkpoint takes 12 GB for each "
                          "billion of the LLM's parameters, 16 with --ema-decay, and six of them lie there; see that "
                          "they fit, or train with --keep-last 1")
        return f"{free:.0f} GB free in {output}, the checkpoints of a run take {wanted} GB at most"

    def check_dataroot(self) -> str:
        """The cameras' folders. Raises UserError when one is missing, Caution when there is no dataset to check."""
        root = self.dataroot
        if not root.is_dir():
            text = f"{root}: no such folder"
            if self.wants_dataset:
                raise UserError(f"{text}; give the nuScenes folder with --dataroot or NUSCENES_DATAROOT")
            raise Caution(f"{text}, only made-up data are checked; give --dataroot or NUSCENES_DATAROOT")
        without = [camera for camera in CAMERAS if not _holds_files(root / "samples" / camera)]
        if without:
            elsewhere = sorted(path.parent for path in root.glob("*/samples") if path.is_dir())
            fix = f"give --dataroot {elsewhere[0]}" if elsewhere else "unpack the nuScenes archives (*_blobs.tgz) there"
            raise UserError(f"{root / 'samples'}: no images of {', '.join(without)}; {fix}")
        return f"{root}: images of {len(CAMERAS)} cameras"

    def check_tables(self) -> str:
        """The tables' folder and the basemaps, which make caches."""
        self._require_dataset()
        folder = self.dataroot / self.args.version
        if not folder.is_dir():
            there = sorted(path.name for path in self.dataroot.glob("v1.0*") if path.is_dir())
            fix = f"give --version {there[0]}" if there else f"unpack the {self.args.version} tables there"
            raise self._for_caches(f"{folder}: no such folder; {fix}")
        fix = f"unpack the {folder.name} tables again"
        try:
            logs, maps = (json.loads((folder / name).read_text()) for name in ("log.json", "map.json"))
            self._cities = sorted({log["location"] for log in logs})
            basemaps = [self.dataroot / each["filename"] for each in maps]
        except FileNotFoundError as error:
            raise self._for_caches(f"{error.filename}: no such table; {fix}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._for_caches(f"{folder}: log.json and map.json cannot be read ({error!r}); {fix}") from error
        missing = [path for path in basemaps if not path.is_file()]
        if missing:
            raise self._for_caches(f"{missing[0]}: no such basemap; unpack the archive's maps folder into "
                                   f"{self.dataroot / 'maps'}")
        return f"{folder}: {', '.join(self._cities)}"

    def check_map_expansion(self) -> str:
        """The vector maps of the cities in the tables."""
        self._require_dataset()
        if not self._cities:
            raise Skipped("needs tables")
        try:
            from data.map_expansion import read_map_tables  # here, so that training never imports shapely
        except ImportError as error:
            raise self._for_caches(f"cannot be checked ({error}); pip install -r requirements.txt") from error
        versions = set()
        for city in self._cities:
            try:
                versions.add(str(read_map_tables(self.dataroot, city)["version"]))
            except UserError as error:
                raise self._for_caches(str(error)) from error
        return f"version {', '.join(sorted(versions))} of {', '.join(self._cities)}"

    def check_cache(self, kind: str) -> str:
        """A cache, kind train or val, as training opens it, and whether images that it names are there."""
        self._require_dataset()
        path, args = self.cache_paths[kind], self.args
        if not path.exists():
            settings = {"split": self.splits[kind], "version": args.version, "pc_range": PC_RANGES[args.pc_range],
                        "gt_style": args.gt_style}
            command = generate_command(path, settings)
            command = command.replace("<nuScenes folder>", shlex.quote(str(self.dataroot)))
            raise UserError(f"{path}: no such GT cache file; make it with {command}")
        cache = GTCache.open(path)
        cache.require(split=self.splits[kind], version=args.version, pc_range=PC_RANGES[args.pc_range],
                      gt_style=args.gt_style)
        cache.verify()
        shared = set(cache.meta["scenes"]).intersection(*(other.meta["scenes"] for other in self.caches.values()))
        if self.caches and shared:
            raise UserError(f"{path}: shares {len(shared)} scenes with the other cache; take splits that go together")
        looked_for = [image for index in range(0, len(cache), max(1, len(cache) // _IMAGE_SAMPLES))
                      for image in cache[index].image_paths]
        missing = [image for image in looked_for if not image_exists(str(self.dataroot), image)]
        if missing:
            raise UserError(f"{self.dataroot / missing[0]}: no such image, nor {len(missing) - 1} more of the "
                            f"{len(looked_for)} looked for; unpack all nuScenes archives (*_blobs.tgz) into "
                            f"{self.dataroot}")
        self.caches[kind] = cache
        return f"{path}: {len(cache)} samples, split {cache.meta['split']}, digest and {len(looked_for)} images found"

    def _require_dataset(self) -> None:
        if not self.wants_dataset:
            raise Skipped("no dataset")

    def _for_caches(self, text: str) -> UserError | Caution:
        """What is missing to make caches: no failure where they are there already."""
        if all(path.is_file() for path in self.cache_paths.values()):
            return Caution(f"{text} (needed to make caches only, which are there)")
        return UserError(text)


def _driver_of_gpu() -> str:
    """Name and driver of the first GPU that the system knows, empty when there is none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_DRIVER_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return ""
    name, _, driver = (found.stdout.splitlines() or [""])[0].partition(", ")
    return f"{name}, driver {driver}" if name else ""


def _free_gb(path: Path) -> float:
    """10^9 bytes free where path is or will be."""
    folder = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return shutil.disk_usage(folder).free / 1e9


def _holds_files(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return next(entries, None) is not None
