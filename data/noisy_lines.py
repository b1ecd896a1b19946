"""Noisy copies of ground-truth lines, which the decoder learns to put back (DN-DETR's idea, arXiv 2203.01305).

A query of the decoder sees few lines, and for long the wrong ones; a noisy copy starts near a line that it belongs to,
so that every layer learns from the first step on how what it sees asks a line to move.
"""

import numpy as np

NUM_COPIES = 2  # of each line that a training takes unless told otherwise
MOST_COPIES = 16  # more only cost time

# Standard deviations. Half a lane's width of shift: with more, the nearest paint is often another line's.
SHIFT_M = 1.0
TURN_RAD = 0.15
STRETCH = 0.1  # share of the length
POINT_M = 0.25  # of each point by itself


def noisy_copies(pts_m: np.ndarray, copies: int, rng: np.random.Generator) -> np.ndarray:
    """Lines [G, P, 2] in metres, shifted, turned and stretched about their centres, points shaken: [copies, G, P, 2].

    The generator decides everything; points may leave the range.
    """
    lines, points = pts_m.shape[:2]
    centre = pts_m.mean(1, keepdims=True)  # [G, 1, 2]
    angle = rng.normal(0.0, TURN_RAD, (copies, lines))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)  # [copies, G, 2, 2]
    turned = (pts_m - centre) @ turn.swapaxes(-1, -2)  # [copies, G, P, 2]
    stretched = turned * (1 + rng.normal(0.0, STRETCH, (copies, lines, 1, 1)))
    shift = rng.normal(0.0, SHIFT_M, (copies, lines, 1, 2))
    return centre + stretched + shift + rng.normal(0.0, POINT_M, (copies, lines, points, 2))
