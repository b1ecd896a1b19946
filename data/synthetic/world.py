"""Write a synthetic nuScenes world: maps, images, tables, all or nothing."""

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.synthetic.elements import Town
from data.synthetic.ground import GroundCanvas
from data.synthetic.map_expansion import MapWriter
from data.synthetic.plan import LOCATIONS, ScenePlan, WorldPlan, WorldSettings, plan_world
from data.synthetic.rig import CAMERA_MOUNTS, LIDAR
from data.synthetic.scene_files import draw_scene
from data.synthetic.tables import BASEMAP_HASHES, make_tables
from data.synthetic.test_set import TEST_VERSION, write_test_tables
from utils.errors import UserError, naming_killed_workers

MARKER = "synthetic_world.json"  # tells a made world from a real dataset
MARKER_SCHEMA = 1
BASEMAP_RESOLUTION = 0.1  # metres per pixel, fixed by nuScenes
PREVIEW_SHARE = 8  # maps/basemap/*.png is this many times smaller


def write_world(
    out: Path, settings: WorldSettings, num_workers: int = 1, overwrite: bool = False, test_set: bool = False
) -> None:
    """Make the world, with a version v1.0-test if asked for, and move it to `out`; nothing is left if it fails.

    Raises:
        UserError: `out` is in use, or cannot be replaced.
    """
    check_target(out, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}, a place to write is expected; name another --out") from error
    try:
        _write_all(work, settings, num_workers)
        if test_set:
            write_test_tables(work / settings.version, work / TEST_VERSION)
        os.chmod(work, 0o755)
        _move_into_place(work, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}), nothing of the new world is left; free "
                        "some space or name another --out") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse a target that holds anything, unless it is a made world and may be replaced, and one that cannot move."""
    if os.path.ismount(out):
        raise UserError(f"{out}: is a mount point, which no folder can take the place of; name a folder in it")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / MARKER).is_file():
        raise UserError(
            f"{out}: holds something else than a synthetic world, an empty folder is expected; name another --out"
        )
    if not overwrite:
        raise UserError(f"{out}: holds a synthetic world, an empty folder is expected; add --overwrite to replace it")


def _move_into_place(work: Path, out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent))
        old = aside / out.name
        try:
            os.replace(out, old)
            os.replace(work, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            aside.rmdir()
            raise
        try:
            shutil.rmtree(aside)
        except OSError as error:
            raise UserError(f"{aside}: what was left of the world that {out} replaced cannot be removed "
                            f"({error.strerror}); remove it") from error
        return
    if out.exists():
        out.rmdir()
    os.replace(work, out)


def _write_all(root: Path, settings: WorldSettings, num_workers: int) -> None:
    plan = plan_world(settings)
    for channel in (*CAMERA_MOUNTS, LIDAR):
        (root / "samples" / channel).mkdir(parents=True)
    _write_maps(root, plan)
    counts = _draw_scenes(root, plan, num_workers)
    table_root = root / settings.version
    table_root.mkdir()
    for name, records in make_tables(plan, counts).items():
        _write_json(table_root / f"{name}.json", records)
    _write_json(
        root / MARKER,
        {
            "schema": MARKER_SCHEMA,
            "version": settings.version,
            "train_scenes": len(settings.train_scenes),
            "val_scenes": len(settings.val_scenes),
            "samples_per_scene": settings.samples_per_scene,
            "sample_interval": settings.sample_interval,
            "seed": settings.seed,
            "image_size": list(settings.image_size),
        },
    )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")))


def _write_maps(root: Path, plan: WorldPlan) -> None:
    (root / "maps" / "expansion").mkdir(parents=True)
    (root / "maps" / "basemap").mkdir()
    for location in LOCATIONS:
        towns = [town for town in plan.towns.values() if town.location == location]
        edge = plan.canvas_edges[location]
        writer = MapWriter(plan.settings.seed, location, edge)
        canvas = GroundCanvas((0.0, 0.0, *edge), BASEMAP_RESOLUTION)
        for town in towns:
            writer.add_town(town)
            canvas.fill_geometry(town.drivable.union(town.walkway), 255)
        _write_json(root / "maps" / "expansion" / f"{location}.json", writer.as_json())
        rows, columns = (int(round(side / BASEMAP_RESOLUTION)) for side in edge[::-1])
        image = cv2.flip(canvas.index[:rows, :columns], 0)  # row 0 of the image is the north edge
        _write_png(root / "maps" / f"{BASEMAP_HASHES[location]}.png", image)
        size = (columns // PREVIEW_SHARE, rows // PREVIEW_SHARE)
        preview = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        _write_png(root / "maps" / "basemap" / f"{location}.png", preview)


def _write_png(path: Path, image: np.ndarray) -> None:
    # Large areas of one value: run lengths take a third of the time of zlib's usual search, and of the bytes.
    _, encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE])
    path.write_bytes(encoded.tobytes())


def _draw_scenes(root: Path, plan: WorldPlan, num_workers: int) -> list[list[np.ndarray]]:
    """Draw every scene, in worker processes when there are several; results in the order of the scenes."""
    settings = plan.settings
    draw = partial(_draw_one, image_size=settings.image_size, seed=settings.seed, root=root)
    tasks = [(scene, plan.towns[scene.town_key]) for scene in plan.scenes]
    progress = partial(tqdm, total=len(tasks), desc="scenes", unit="scene", disable=not sys.stderr.isatty())
    if min(num_workers, len(tasks)) <= 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            return list(progress(map(draw, tasks)))
        finally:
            cv2.setNumThreads(threads)
    context = multiprocessing.get_context("spawn")
    with naming_killed_workers(num_workers), ProcessPoolExecutor(
        min(num_workers, len(tasks)), mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        return list(progress(pool.map(draw, tasks)))


def _draw_one(task: tuple[ScenePlan, Town], image_size: tuple[int, int], seed: int, root: Path) -> list[np.ndarray]:
    scene, town = task
    return draw_scene(scene, town, image_size, seed, root)
