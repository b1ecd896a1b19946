"""What a world will contain, decided before anything is drawn: towns, logs, scenes, motion, timestamps."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import numpy as np

from data.synthetic.curves import arc_length
from data.synthetic.drive import EgoMotion, make_ego_motion
from data.synthetic.elements import Town
from data.synthetic.rig import CAMERA_MOUNTS, LIDAR, Sensor, make_rig
from data.synthetic.seeding import make_rng
from data.synthetic.town import TOWN_SIZE, build_town
from data.synthetic.traffic import Agent, make_traffic

LOCATIONS = ("boston-seaport", "singapore-onenorth", "singapore-queenstown", "singapore-hollandvillage")
# Half of the towns drive on the right, as about half of nuScenes does.
TOWN_LOCATIONS = (LOCATIONS[0], LOCATIONS[1], LOCATIONS[0], LOCATIONS[2], LOCATIONS[0], LOCATIONS[3])
SCENES_PER_TOWN = 8
FEW_TOWNS = 8  # up to here every scene gets a town of its own
SCENES_PER_LOG = 4
CITY_MARGIN = 40.0  # metres of free land around the towns of a city
SAMPLE_INTERVAL = 0.5  # seconds between key frames of nuScenes (2 Hz)
LEAD = 0.3  # seconds of motion before the first key frame
FIRST_LOG_TIME = 1_530_500_000  # seconds since 1970
LOG_SPACING = 90_000  # seconds between logs
SCENE_SPACING = 600  # seconds between the scenes of a log


@dataclass(frozen=True)
class WorldSettings:
    """What the user asks for."""

    version: str
    train_scenes: tuple[str, ...]  # official scene names
    val_scenes: tuple[str, ...]
    samples_per_scene: int
    seed: int
    image_size: tuple[int, int]  # width, height in pixels
    sample_interval: float = SAMPLE_INTERVAL  # seconds between key frames


@dataclass(frozen=True)
class LogPlan:
    """One recording session: one town, one car."""

    key: str
    logfile: str
    vehicle: str
    date: str
    location: str
    rig: dict[str, Sensor]


@dataclass(frozen=True)
class ScenePlan:
    """One scene: who moves how, and when each sensor fires. Times in microseconds since 1970."""

    name: str
    town_key: str
    log: LogPlan
    ego: EgoMotion
    agents: list[Agent]
    start_time: int
    sensor_times: list[dict[str, int]]  # one dict a sample: channel -> timestamp

    def motion_time(self, timestamp: int) -> float:
        """Seconds on the clock of the trajectories."""
        return (timestamp - self.start_time) / 1e6 + LEAD

    def filename(self, sample_index: int, channel: str) -> str:
        """Path of a sensor's file relative to the dataroot."""
        suffix = "pcd.bin" if channel == LIDAR else "jpg"
        timestamp = self.sensor_times[sample_index][channel]
        return f"samples/{channel}/{self.log.logfile}__{channel}__{timestamp}.{suffix}"


@dataclass(frozen=True)
class WorldPlan:
    """The whole world."""

    settings: WorldSettings
    towns: dict[str, Town]
    canvas_edges: dict[str, tuple[float, float]]
    logs: list[LogPlan]
    scenes: list[ScenePlan]


def plan_world(settings: WorldSettings) -> WorldPlan:
    """Decide everything; a pure function of the settings."""
    groups = []  # (town key, location, scene names)
    for split, names in (("train", settings.train_scenes), ("val", settings.val_scenes)):
        num_towns = max(min(len(names), FEW_TOWNS), -(-len(names) // SCENES_PER_TOWN))
        for index in range(num_towns):
            location = TOWN_LOCATIONS[index % len(TOWN_LOCATIONS)]
            groups.append((f"{split}-{index}", location, names[index::num_towns]))
    centers, canvas_edges = _place_towns([(key, location) for key, location, _ in groups])
    towns, logs, scenes = {}, [], []
    for key, location, names in groups:
        town = build_town(settings.seed, key, location, centers[key])
        towns[key] = town
        starts = _start_points(make_rng(settings.seed, "starts", key), town, len(names))
        for index, name in enumerate(names):
            if index % SCENES_PER_LOG == 0:
                logs.append(_plan_log(settings, len(logs), key, location))
            start_time = (
                FIRST_LOG_TIME + (len(logs) - 1) * LOG_SPACING + index % SCENES_PER_LOG * SCENE_SPACING
            ) * 1_000_000
            scenes.append(_plan_scene(settings, name, town, logs[-1], starts[index], start_time))
    order = {name: i for i, name in enumerate((*settings.train_scenes, *settings.val_scenes))}
    scenes.sort(key=lambda scene: order[scene.name])
    return WorldPlan(settings, towns, canvas_edges, logs, scenes)


def _place_towns(towns: list[tuple[str, str]]) -> tuple[dict, dict]:
    """Centres of the towns on each city's square lattice, and each city's size; positive coordinates."""
    centers, canvas_edges = {}, {}
    for location in LOCATIONS:
        keys = [key for key, where in towns if where == location]
        columns = max(1, int(np.ceil(np.sqrt(len(keys)))))
        rows = -(-len(keys) // columns)
        for index, key in enumerate(keys):
            cell = np.array([index % columns, index // columns])
            centers[key] = tuple((CITY_MARGIN + (cell + 0.5) * TOWN_SIZE).tolist())
        canvas_edges[location] = tuple(2 * CITY_MARGIN + TOWN_SIZE * n for n in ((columns, rows) if keys else (0, 0)))
    return centers, canvas_edges


def _start_points(rng: np.random.Generator, town: Town, count: int) -> list[tuple[int, float]]:
    """(lane, metres along it): a different lane for each scene as long as there are enough."""
    order = rng.permutation(len(town.lanes))
    starts = []
    for index in range(count):
        lane = int(order[index % len(order)])
        starts.append((lane, float(rng.uniform(0.0, 0.8) * arc_length(town.lanes[lane].center)[-1])))
    return starts


def _plan_log(settings: WorldSettings, index: int, town_key: str, location: str) -> LogPlan:
    boston = location.startswith("boston")
    offset = timedelta(hours=-4 if boston else 8)
    vehicle = "n008" if boston else "n015"
    start = datetime.fromtimestamp(FIRST_LOG_TIME + index * LOG_SPACING, timezone(offset))
    key = f"log-{index}-{town_key}"
    rig = make_rig(make_rng(settings.seed, key, "rig"), settings.image_size)
    logfile = f"{vehicle}-{start:%Y-%m-%d-%H-%M-%S}{'-0400' if boston else '+0800'}"
    return LogPlan(key, logfile, vehicle, f"{start:%Y-%m-%d}", location, rig)


def _plan_scene(
    settings: WorldSettings,
    name: str,
    town: Town,
    log: LogPlan,
    start: tuple[int, float],
    start_time: int,
) -> ScenePlan:
    rng = make_rng(settings.seed, "scene", name)
    duration = LEAD + settings.samples_per_scene * settings.sample_interval + 0.2
    ego = make_ego_motion(rng, town, start, duration)
    agents = make_traffic(rng, town, ego.trajectory, duration)
    sensor_times = []
    for index in range(settings.samples_per_scene):
        lidar_time = start_time + round(1e6 * index * settings.sample_interval) + int(rng.integers(-1500, 1500))
        times = {
            channel: lidar_time - before + int(rng.integers(-400, 400))
            for channel, (_, _, _, before) in CAMERA_MOUNTS.items()
        }
        sensor_times.append({LIDAR: lidar_time, **times})
    return ScenePlan(name, town.key, log, ego, agents, start_time, sensor_times)
