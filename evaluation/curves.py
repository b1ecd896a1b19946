"""The curve through a line's points: ten points of a bend lie on it, the straight edges between them do not.

An edge of 6 m in a bend of 50 m radius cuts it short by 0.1 m, as much as paint is wide.
"""

import numpy as np

MISS_M = 0.05  # metres by which an edge may miss its curve and stay straight: a quarter of paint
MAX_TURN_DEG = 30.0  # a line that turns by more at a point has a corner there, as crossings have
SHARES = np.array([0.25, 0.5, 0.75], np.float32)  # of an edge, where points are added


def curves_through(lines: np.ndarray) -> list[np.ndarray]:
    """Lines [N, P, 2] in metres with points added where they bend: N arrays [n, 2], P <= n <= 4 * P - 3.

    Each edge becomes a cubic Hermite curve, whose tangent at a point is that of the circle through it and its two
    neighbours. At an end or a corner the edge bends as its other point has it; between two of these it stays straight.
    All given points stay.
    """
    step = np.diff(lines, axis=1)  # [N, P-1, 2]
    length = np.linalg.norm(step, axis=2, keepdims=True)
    along = _unit(step)
    tangent, smooth = np.zeros_like(lines), np.zeros((*lines.shape[:2], 1), bool)  # [N, P, 2], [N, P, 1]
    tangent[:, 1:-1] = _unit(along[:, :-1] * length[:, 1:] + along[:, 1:] * length[:, :-1])
    turn = (along[:, :-1] * along[:, 1:]).sum(axis=2, keepdims=True)  # its cosine
    smooth[:, 1:-1] = turn >= np.cos(np.deg2rad(MAX_TURN_DEG))

    start, end, from_smooth, to_smooth = tangent[:, :-1], tangent[:, 1:], smooth[:, :-1], smooth[:, 1:]
    leaving = np.where(from_smooth, start, np.where(to_smooth, _mirrored(end, along), along))
    arriving = np.where(to_smooth, end, np.where(from_smooth, _mirrored(start, along), along))
    share = SHARES[:, None]  # [3, 1] of what follows, [N, P-1, 3, 2]
    straight = lines[:, :-1, None] + share * step[:, :, None]
    pull = share * (1 - share) * length[:, :, None]
    # The curve less its chord: h10 and h11 of the Hermite basis, of tangents less the edge.
    bend = pull * ((1 - share) * (leaving - along)[:, :, None] - share * (arriving - along)[:, :, None])
    bent = np.linalg.norm(bend, axis=3).max(axis=2) > MISS_M  # [N, P-1]

    points = np.concatenate([lines[:, :-1, None], straight + bend], axis=2)  # [N, P-1, 4, 2]
    wanted = np.concatenate([np.ones((*bent.shape, 1), bool), np.repeat(bent[:, :, None], len(SHARES), 2)], axis=2)
    return [np.concatenate([points[n][wanted[n]], lines[n, -1:]]) for n in range(len(lines))]


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., 2] at length 1; those of length 0 stay."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def _mirrored(tangent: np.ndarray, along: np.ndarray) -> np.ndarray:
    """The tangent [..., 2] at the other end of an arc whose chord has the direction along [..., 2]."""
    return 2 * (tangent * along).sum(axis=-1, keepdims=True) * along - tangent
