"""The 13 tables of a nuScenes version, from the plan and what the LiDAR saw."""

import numpy as np

from data.synthetic.plan import LOCATIONS, ScenePlan, WorldPlan
from data.synthetic.rig import LIDAR
from data.synthetic.seeding import make_token

# Name of each city's basemap image, which the devkit's BitMap also knows; it is the map record's token too.
BASEMAP_HASHES = dict(
    zip(
        LOCATIONS,
        (
            "36092f0b03a857c6a3403e25b4b7aab3",
            "53992ee3023e5494b90c316c183be829",
            "93406b464a165eaba6d9de76ca09f5da",
            "37819e65e09e5547b8a3ceaefba56bb2",
        ),
        strict=True,
    )
)
CHANNELS = (
    "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT", "LIDAR_TOP",
    "RADAR_FRONT", "RADAR_FRONT_RIGHT", "RADAR_FRONT_LEFT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT",
)  # fmt: skip
MODALITIES = {"CAM": "camera", "LIDAR": "lidar", "RADAR": "radar"}
ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip
CATEGORIES = (
    "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.wheelchair", "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer",
    "human.pedestrian.construction_worker", "animal", "vehicle.car", "vehicle.motorcycle", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.truck", "vehicle.construction",
    "vehicle.emergency.ambulance", "vehicle.emergency.police", "vehicle.trailer", "movable_object.barrier",
    "movable_object.trafficcone", "movable_object.pushable_pullable", "movable_object.debris",
    "static_object.bicycle_rack",
)  # fmt: skip
VISIBILITY_LEVELS = ((40, "v0-40"), (60, "v40-60"), (80, "v60-80"), (100, "v80-100"))
ANNOTATED_WITHIN = 60.0  # metres around the recording car
STANDING = 0.3  # m/s below which a vehicle counts as stopped


def make_tables(plan: WorldPlan, lidar_counts: list[list[np.ndarray]]) -> dict[str, list[dict]]:
    """All tables by name; lidar_counts as draw_scene returns them, one entry a scene."""
    writer = _TableWriter(plan)
    for scene, counts in zip(plan.scenes, lidar_counts, strict=True):
        writer.add_scene(scene, counts)
    return writer.tables


class _TableWriter:
    def __init__(self, plan: WorldPlan):
        self.seed = plan.settings.seed
        self.image_size = plan.settings.image_size
        self.tables: dict[str, list[dict]] = {
            name: []
            for name in (
                "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample",
                "sample_annotation", "sample_data", "scene", "sensor", "visibility",
            )
        }  # fmt: skip
        self._add_fixed_tables()
        self._add_logs(plan)

    def _token(self, *path: object) -> str:
        return make_token(self.seed, "table", *path)

    def _add_fixed_tables(self) -> None:
        for name in ATTRIBUTES:
            record = {"token": self._token("attribute", name), "name": name, "description": name.replace(".", " ")}
            self.tables["attribute"].append(record)
        for name in CATEGORIES:
            record = {"token": self._token("category", name), "name": name, "description": name.replace(".", " ")}
            self.tables["category"].append(record)
        low = 0
        for index, (high, level) in enumerate(VISIBILITY_LEVELS):
            description = f"visibility of whole object is between {low} and {high}%"
            record = {"description": description, "token": str(index + 1), "level": level}
            self.tables["visibility"].append(record)
            low = high
        for channel in CHANNELS:
            record = {
                "token": self._token("sensor", channel),
                "channel": channel,
                "modality": MODALITIES[channel.split("_")[0]],
            }
            self.tables["sensor"].append(record)

    def _add_logs(self, plan: WorldPlan) -> None:
        for location in LOCATIONS:
            tokens = [self._token("log", log.key) for log in plan.logs if log.location == location]
            self.tables["map"].append(
                {
                    "category": "semantic_prior",
                    "token": BASEMAP_HASHES[location],
                    "filename": f"maps/{BASEMAP_HASHES[location]}.png",
                    "log_tokens": tokens,
                }
            )
        for log in plan.logs:
            self.tables["log"].append(
                {
                    "token": self._token("log", log.key),
                    "logfile": log.logfile,
                    "vehicle": log.vehicle,
                    "date_captured": log.date,
                    "location": log.location,
                }
            )
            for channel, sensor in log.rig.items():
                self.tables["calibrated_sensor"].append(
                    {
                        "token": self._token("calibrated_sensor", log.key, channel),
                        "sensor_token": self._token("sensor", channel),
                        "translation": sensor.translation.tolist(),
                        "rotation": sensor.rotation.tolist(),
                        "camera_intrinsic": [] if sensor.intrinsic is None else sensor.intrinsic.tolist(),
                    }
                )

    def add_scene(self, scene: ScenePlan, counts: list[np.ndarray]) -> None:
        """Records of one scene: scene, samples, sample data with ego poses, instances and annotations."""
        num_samples = len(scene.sensor_times)
        tokens = [self._token("sample", scene.name, index) for index in range(num_samples)]
        self.tables["scene"].append(
            {
                "token": self._token("scene", scene.name),
                "log_token": self._token("log", scene.log.key),
                "nbr_samples": num_samples,
                "first_sample_token": tokens[0],
                "last_sample_token": tokens[-1],
                "name": scene.name,
                "description": f"Synthetic town {scene.town_key}",
            }
        )
        for index, times in enumerate(scene.sensor_times):
            self.tables["sample"].append(
                {
                    "token": tokens[index],
                    "timestamp": times[LIDAR],
                    **self._links("sample", scene.name, index, num_samples),
                    "scene_token": self._token("scene", scene.name),
                }
            )
            for channel in times:
                self._add_sample_data(scene, index, channel)
        for agent_index in range(len(scene.agents)):
            self._add_instance(scene, agent_index, counts)

    def _links(self, table: str, *path_and_size: object) -> dict[str, str]:
        """prev and next of a chain: path ..., index in the chain, length of the chain."""
        *path, index, size = path_and_size
        return {
            "prev": self._token(table, *path, index - 1) if index > 0 else "",
            "next": self._token(table, *path, index + 1) if index + 1 < size else "",
        }

    def _add_sample_data(self, scene: ScenePlan, index: int, channel: str) -> None:
        token = self._token("sample_data", scene.name, channel, index)
        timestamp = scene.sensor_times[index][channel]
        translation, rotation = scene.ego.pose_at(scene.motion_time(timestamp))
        self.tables["ego_pose"].append(
            {
                "token": token,
                "timestamp": timestamp,
                "rotation": rotation.tolist(),
                "translation": translation.tolist(),
            }
        )
        width, height = (0, 0) if channel == LIDAR else self.image_size
        self.tables["sample_data"].append(
            {
                "token": token,
                "sample_token": self._token("sample", scene.name, index),
                "ego_pose_token": token,
                "calibrated_sensor_token": self._token("calibrated_sensor", scene.log.key, channel),
                "timestamp": timestamp,
                "fileformat": "pcd" if channel == LIDAR else "jpg",
                "is_key_frame": True,
                "height": height,
                "width": width,
                "filename": scene.filename(index, channel),
                **self._links("sample_data", scene.name, channel, index, len(scene.sensor_times)),
            }
        )

    def _add_instance(self, scene: ScenePlan, agent_index: int, counts: list[np.ndarray]) -> None:
        """A vehicle and its annotations in the samples where it is near enough."""
        agent = scene.agents[agent_index]
        path = (scene.name, agent_index)
        near = []
        for index, times in enumerate(scene.sensor_times):
            time = scene.motion_time(times[LIDAR])
            x, y, _ = agent.trajectory.at(time)
            ego_x, ego_y, _ = scene.ego.trajectory.at(time)
            if np.hypot(x - ego_x, y - ego_y) < ANNOTATED_WITHIN:
                near.append((index, time))
        if not near:
            return
        last = len(near) - 1
        self.tables["instance"].append(
            {
                "token": self._token("instance", *path),
                "category_token": self._token("category", agent.category),
                "nbr_annotations": len(near),
                "first_annotation_token": self._token("annotation", *path, 0),
                "last_annotation_token": self._token("annotation", *path, last),
            }
        )
        for rank, (index, time) in enumerate(near):
            x, y, yaw = agent.trajectory.at(time)
            later = agent.trajectory.at(time + 0.1)
            moving = np.hypot(later[0] - x, later[1] - y) > STANDING * 0.1
            hits, possible = (int(n) for n in counts[index][agent_index])
            share = 100.0 * hits / max(possible, 1)
            visibility = sum(share >= high for high, _ in VISIBILITY_LEVELS[:-1]) + 1
            self.tables["sample_annotation"].append(
                {
                    "token": self._token("annotation", *path, rank),
                    "sample_token": self._token("sample", scene.name, index),
                    "instance_token": self._token("instance", *path),
                    "visibility_token": str(visibility),
                    "attribute_tokens": [self._token("attribute", "vehicle.moving" if moving else "vehicle.stopped")],
                    "translation": [x, y, agent.size[2] / 2],
                    "size": list(agent.size),
                    "rotation": [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))],
                    **self._links("annotation", *path, rank, len(near)),
                    "num_lidar_pts": hits,
                    "num_radar_pts": 0,
                }
            )
