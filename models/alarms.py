"""The collapse alarms, under the names they have in outputs, logs and tools."""

# Spread across the scenes of a batch (models.detector.spread_across_batch) -> of what.
SPREADS = {"scene_std": "scene tokens", "ground_std": "ground tokens", "query_std": "map queries"}
