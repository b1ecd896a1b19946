"""The collapse alarms, under the names they have in outputs, logs and tools."""

# Spread across scenes (models.detector.spread_across_batch), of a batch in training, of a split elsewhere -> of what.
SPREADS = {"scene_std": "scene tokens", "ground_std": "ground tokens", "query_std": "map queries"}

# Scene tokens that had collapsed were at 0.012 and below; in validations of tiny that TRAINING_SUMMARY.md has of
# networks that learn, at 0.06 and above.
COLLAPSED = 0.02


def collapsed(spreads: dict[str, float]) -> list[str]:
    """What hardly differs between the scenes any more, by the spreads of a split under their names in SPREADS."""
    return [states for name, states in SPREADS.items() if spreads[name] < COLLAPSED]
