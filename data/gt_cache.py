"""The GT cache: everything that training needs from the nuScenes tables and maps, one file a split.

The file is in the safetensors format (8 bytes of header length, a JSON header, raw little-endian tensors), so
any safetensors reader opens it; here it is mapped into memory, which makes opening quick and lets worker
processes share the pages. data/records.py says which tensors it holds. The header's metadata holds the
settings that shaped the content (`GTCache.meta`).
"""

import hashlib
import json
import mmap
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.records import DTYPES, TENSORS, SampleRecord, records_to_tensors
from data.splits import SPLITS, resolve_split
from utils.errors import UserError
from utils.files import replacing
from utils.frame import CAMERAS, CLASSES, PC_RANGES

SCHEMA = 2
GT_STYLES = ("maptr", "streammapnet")  # whose vectors; data/vectorize.py tells them apart
FORMAT = "map_detection_gt_cache"
_MAX_HEADER_BYTES = 1 << 27


def default_cache_path(
    dataroot: str | Path, version: str, split: str, pc_range: str = "60x30", gt_style: str = "maptr"
) -> Path:
    """Where a split's cache lies unless the user says otherwise; pc_range is a name in PC_RANGES."""
    style = "" if gt_style == "maptr" else f"_{gt_style}"
    name = f"{version}_{resolve_split(split, version)}_{pc_range}{style}.safetensors"
    return Path(dataroot) / "gt_cache" / name


def is_cache_file(path: str | Path) -> bool:
    """Whether a file begins as a cache does, with the length of its header, and not with text; False if not there."""
    if not os.path.isfile(path):  # of a pipe, what is read here would be lost
        return False
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(8)
    except OSError:
        return False


def range_name(pc_range: Sequence[float]) -> str:
    """The name of a pc_range in PC_RANGES, or its six numbers when it has no name."""
    found = [name for name, values in PC_RANGES.items() if list(values) == [float(v) for v in pc_range]]
    return found[0] if found else ",".join(f"{v:g}" for v in pc_range)


def write_gt_cache(path: str | Path, records: Sequence[SampleRecord], meta: Mapping) -> None:
    """Write records in their order; schema, classes, cameras, counts and digest are added to meta.

    The same records and meta give the same bytes.
    """
    tensors, scenes, locations = records_to_tensors(records)
    descriptions = {record.scene_name: record.scene_description for record in records}
    full_meta = {
        **meta,
        "schema": SCHEMA,
        "classes": list(CLASSES),
        "cameras": list(CAMERAS),
        "num_samples": len(records),
        "scenes": scenes,
        "scene_descriptions": [descriptions[scene] for scene in scenes],
        "locations": locations,
    }
    header = {}
    offset = 0
    for name, array in tensors.items():
        span = [offset, offset + array.nbytes]
        header[name] = {"dtype": TENSORS[name], "shape": list(array.shape), "data_offsets": span}
        offset += array.nbytes
    blocks = [array.tobytes() for array in tensors.values()]
    full_meta["digest"] = _digest(full_meta, header, blocks)
    header["__metadata__"] = {"format": FORMAT, "meta": json.dumps(full_meta, sort_keys=True)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start on a multiple of 8 bytes
    with replacing(path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for block in blocks:
            file.write(block)


class GTCache:
    """A cache file mapped into memory; `cache[i]` is a SampleRecord. Pickles as its path."""

    def __init__(self, path: str, meta: dict, header: dict, data: memoryview):
        self.path = path
        self.meta = meta
        self._header = header
        self._data = data
        self._tensors = {}
        for name, kind in TENSORS.items():
            begin, end = header[name]["data_offsets"]
            array = np.frombuffer(data[begin:end], DTYPES[kind])
            self._tensors[name] = array.reshape(header[name]["shape"])
        self._sample_tokens: list[str] | None = None
        self._index_of: dict[str, int] = {}

    @classmethod
    def open(cls, path: str | Path) -> "GTCache":
        """Map a cache. Raises UserError when it is missing, not a cache, of another schema or truncated."""
        path = os.fspath(path)
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                header, meta, start = _read_header(path, file, size)
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such GT cache file; make it with {generate_command(path)}") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); give a readable GT cache") from error
        try:
            end = start + max(entry["data_offsets"][1] for entry in header.values())
            if size == end:
                return cls(path, meta, header, mapped[start:])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: the header does not fit its tensors ({error}); "
                f"make it anew with {generate_command(path, meta)}"
            ) from error
        raise UserError(
            f"{path}: {size} bytes, the header says {end} (cut short or altered); "
            f"make it anew with {generate_command(path, meta)}"
        )

    def __reduce__(self):
        return GTCache.open, (self.path,)

    def __len__(self) -> int:
        return len(self._tensors["timestamp"])

    def __getitem__(self, index: int) -> SampleRecord:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: sample {index} of {len(self)}")
        t = self._tensors
        first, last = t["instance_offsets"][index : index + 2]
        bounds = t["point_offsets"][first : last + 1]
        points = t["points"][bounds[0] : bounds[-1]].copy()
        bounds = (bounds - bounds[0]).tolist()
        cameras = len(CAMERAS)
        return SampleRecord(
            sample_token=self._string("sample_tokens", index),
            scene_name=self.meta["scenes"][t["scene"][index]],
            location=self.meta["locations"][t["location"][index]],
            timestamp=int(t["timestamp"][index]),
            image_paths=tuple(self._string("image_paths", index * cameras + v) for v in range(cameras)),
            image_sizes=t["image_sizes"][index].astype(np.int64),
            camera_intrinsic=t["camera_intrinsic"][index].copy(),
            cam2lidar=t["cam2lidar"][index].copy(),
            lidar2global=t["lidar2global"][index].copy(),
            ego2global=t["ego2global"][index].copy(),
            ground_z=float(t["ground_z"][index]),
            labels=t["labels"][first:last].astype(np.int64),
            pts_m=[points[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)],
            scene_description=self.meta["scene_descriptions"][t["scene"][index]],
        )

    def tensor(self, name: str) -> np.ndarray:
        """One of the TENSORS of data/records.py over the whole split, mapped from the file and not writable."""
        return self._tensors[name]

    @property
    def sample_tokens(self) -> list[str]:
        """All sample tokens in the order of the file."""
        if self._sample_tokens is None:
            self._sample_tokens = [self._string("sample_tokens", i) for i in range(len(self))]
        return self._sample_tokens

    def index_of(self, sample_token: str) -> int:
        """Position of a sample. Raises UserError when the cache does not hold it."""
        if not self._index_of:
            self._index_of = {token: i for i, token in enumerate(self.sample_tokens)}
        if sample_token not in self._index_of:
            raise UserError(
                f"{self.path}: sample token {sample_token!r} is not in split {self.meta['split']}; "
                f"take one of the cache's tokens or open the cache of the other split"
            )
        return self._index_of[sample_token]

    def verify(self) -> None:
        """Read the whole file and compare its digest. Raises UserError when the content was altered."""
        blocks = [self._data[slice(*entry["data_offsets"])] for entry in self._header.values()]
        found = _digest(self.meta, self._header, blocks)
        if found != self.meta["digest"]:
            raise UserError(
                f"{self.path}: digest {found[:16]}..., the header says {self.meta['digest'][:16]}... "
                f"(altered content); make it anew with {generate_command(self.path, self.meta)}"
            )

    def require(
        self,
        split: str | None = None,
        pc_range: Sequence[float] | None = None,
        version: str | None = None,
        gt_style: str | None = None,
        fix: str | None = None,
    ) -> None:
        """Raise UserError, which ends with `fix`, when the cache was made with other settings than the given ones."""
        wanted = {"version": version, "split": split, "pc_range": pc_range, "gt_style": gt_style}
        if split is not None:
            wanted["split"] = resolve_split(split, version or self.meta["version"])
        if pc_range is not None:
            wanted["pc_range"] = [float(value) for value in pc_range]
        wanted = {key: value for key, value in wanted.items() if value is not None}
        command = self._command_beside({**self.meta, **wanted})
        fix = fix or f"give the matching cache or make one with {command}"
        for key, value in wanted.items():
            if self.meta[key] != value:
                raise UserError(f"{self.path}: made for {key} {self.meta[key]}, expected {value}; {fix}")

    def _command_beside(self, meta: Mapping) -> str:
        """The command that makes the cache of other settings in the same folder, under its default name."""
        settings = (meta["version"], meta["split"], range_name(meta["pc_range"]), meta["gt_style"])
        return generate_command(Path(self.path).parent / default_cache_path("", *settings).name, meta)

    def _string(self, name: str, index: int) -> str:
        begin, end = self._tensors[f"{name}_offsets"][index : index + 2]
        return self._tensors[name][begin:end].tobytes().decode()


def generate_command(path: str | Path, meta: Mapping | None = None) -> str:
    """The command that makes the cache at `path` with these settings, for error messages.

    Without settings they are taken from the file's name where it is a default one.
    """
    path = Path(path)
    dataroot = shlex.quote(os.fspath(path.parent.parent)) if path.parent.name == "gt_cache" else "<nuScenes folder>"
    words = ["python tools/generate_gt_cache.py", *_settings_of(path, meta), "--dataroot", dataroot]
    words += ["--output", shlex.quote(os.fspath(path))]
    return " ".join([*words, "--overwrite"] if os.path.exists(path) else words)


def _settings_of(path: Path, meta: Mapping | None) -> list[str]:
    """Flags of tools/generate_gt_cache.py for these settings, or for those that a default name stands for."""
    if meta is not None:
        settings = (meta["split"], meta["version"], range_name(meta["pc_range"]), meta["gt_style"])
    else:
        alternatives = [f"({'|'.join(names)})" for names in (SPLITS, PC_RANGES, GT_STYLES)]
        pattern = r"(v1\.0-\w+?)_{}_{}(?:_{})?\.safetensors".format(*alternatives)
        found = re.fullmatch(pattern, path.name)
        if found is None:
            return ["--split <split> --version <version>"]
        version, split, pc_range, gt_style = found.groups()
        settings = (split, version, pc_range, gt_style or "maptr")
    return ["--split {} --version {} --pc-range {} --gt-style {}".format(*settings)]


def _read_header(path: str, file, size: int) -> tuple[dict, dict, int]:
    """Header entries, metadata and the byte at which the tensors start, all checked."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
        raise UserError(f"{path}: {size} bytes, not a whole GT cache; make it anew with {generate_command(path)}")
    try:
        header = json.loads(file.read(length))
        marks = header.pop("__metadata__")
        if marks["format"] != FORMAT:
            raise KeyError("format")
        meta = json.loads(marks["meta"])
        missing = {"split", "version", "pc_range", "gt_style", "digest", "scenes", "locations"} - meta.keys()
        if missing:
            raise KeyError(min(missing))
        command = generate_command(path, meta)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: the header is not that of a GT cache; give a cache made by {generate_command(path)}"
        ) from error
    expected = {"schema": SCHEMA, "classes": list(CLASSES), "cameras": list(CAMERAS)}
    for key, value in expected.items():
        if meta.get(key) != value:
            raise UserError(f"{path}: {key} {meta.get(key)}, expected {value}; make it anew with {command}")
    return header, meta, 8 + length


def _digest(meta: Mapping, header: Mapping, blocks: Sequence) -> str:
    """SHA-256 of the settings, the shapes and the tensor bytes."""
    settings = {key: value for key, value in meta.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps([settings, header], sort_keys=True).encode())
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
