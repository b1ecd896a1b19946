"""The street network of a town: junctions, and the control polylines of the roads between them."""

from dataclasses import dataclass

import numpy as np

MIN_ARM_ANGLE = np.deg2rad(52.0)
MAX_ATTEMPTS = 200


@dataclass(frozen=True)
class Network:
    """Junction positions [J, 2] in metres and roads as (junction at the start, at the end, control points [K, 2])."""

    junctions: np.ndarray
    roads: list[tuple[int, int, np.ndarray]]


def make_network(rng: np.random.Generator, center: np.ndarray) -> Network:
    """A random street network around `center`: a jittered grid with streets left out, turned by a random angle."""
    for _ in range(MAX_ATTEMPTS):
        network = _try_network(rng, center)
        if network is not None:
            return network
    raise RuntimeError(f"no street network found in {MAX_ATTEMPTS} attempts")


def _try_network(rng: np.random.Generator, center: np.ndarray) -> Network | None:
    columns, rows = (int(n) for n in rng.choice([(3, 3), (4, 3), (3, 4), (4, 4)]))
    x = np.cumsum(rng.uniform(88, 128, columns))
    y = np.cumsum(rng.uniform(88, 128, rows))
    grid = np.stack(np.meshgrid(x - x.mean(), y - y.mean()), axis=-1).reshape(-1, 2)  # [rows*columns, 2]
    grid += rng.uniform(-13, 13, grid.shape)
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    nodes = grid @ rotation.T + center

    edges = [(i, i + 1) for i in range(len(nodes)) if (i + 1) % columns]
    edges += [(i, i + columns) for i in range(len(nodes) - columns)]
    edges = _drop_edges(rng, len(nodes), edges)
    if edges is None:
        return None
    return _join_chains(rng, nodes, edges)


def _drop_edges(rng: np.random.Generator, num_nodes: int, edges: list) -> list | None:
    """Leave out some streets; every node keeps two, the network stays in one piece. None if too few junctions."""
    kept = list(edges)
    num_to_drop = int(rng.integers(0, len(edges) // 5 + 1))
    for index in rng.permutation(len(edges)):
        if num_to_drop == 0:
            break
        smaller = [edge for edge in kept if edge != edges[index]]
        if _degrees(num_nodes, smaller).min() >= 2 and _is_connected(num_nodes, smaller):
            kept = smaller
            num_to_drop -= 1
    return kept if (_degrees(num_nodes, kept) >= 3).sum() >= 3 else None


def _degrees(num_nodes: int, edges: list) -> np.ndarray:
    return np.bincount(np.asarray(edges).ravel(), minlength=num_nodes)


def _is_connected(num_nodes: int, edges: list) -> bool:
    reached, frontier = {0}, [0]
    while frontier:
        node = frontier.pop()
        for a, b in edges:
            if node in (a, b) and not {a, b} <= reached:
                other = b if node == a else a
                reached.add(other)
                frontier.append(other)
    return len(reached) == num_nodes


def _join_chains(rng: np.random.Generator, nodes: np.ndarray, edges: list) -> Network | None:
    """Nodes with two streets become bends of one road; None if two arms of a junction come too close."""
    neighbours: dict[int, list[int]] = {i: [] for i in range(len(nodes))}
    for a, b in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    junction_nodes = [i for i, near in neighbours.items() if len(near) >= 3]
    index_of = {node: i for i, node in enumerate(junction_nodes)}
    roads = []
    walked = set()
    for start in junction_nodes:
        for first in neighbours[start]:
            if (start, first) in walked:
                continue
            chain = [start, first]
            while chain[-1] not in index_of:
                chain.append(next(n for n in neighbours[chain[-1]] if n != chain[-2]))
            walked |= {(start, first), (chain[-1], chain[-2])}
            if chain[-1] == start:
                return None
            roads.append((index_of[start], index_of[chain[-1]], _control_points(rng, nodes[chain])))
    network = Network(nodes[junction_nodes], roads)
    return network if _arms_are_apart(network) else None


def _control_points(rng: np.random.Generator, chain: np.ndarray) -> np.ndarray:
    """The chain's nodes [N, 2], with a sideways bulge in the middle of some of the segments."""
    points = [chain[0]]
    for a, b in zip(chain[:-1], chain[1:], strict=True):
        length = np.linalg.norm(b - a)
        if rng.random() < 0.55:
            sideways = np.array([a[1] - b[1], b[0] - a[0]]) / length
            points.append((a + b) / 2 + sideways * rng.uniform(-0.13, 0.13) * length)
        points.append(b)
    return np.array(points)


def _arms_are_apart(network: Network) -> bool:
    angles: dict[int, list[float]] = {i: [] for i in range(len(network.junctions))}
    for start, end, control in network.roads:
        for junction, direction in ((start, control[1] - control[0]), (end, control[-2] - control[-1])):
            angles[junction].append(float(np.arctan2(direction[1], direction[0])))
    for arms in angles.values():
        ordered = np.sort(arms)
        gaps = np.diff(np.append(ordered, ordered[0] + 2 * np.pi))
        if gaps.min() < MIN_ARM_ANGLE:
            return False
    return True
