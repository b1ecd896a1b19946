"""Which charts a report shows, and of what."""

import re
from collections.abc import Sequence

import numpy as np

from evaluation.calibration import NUM_BINS, Calibration
from evaluation.chamfer_ap import ClassHits, average_precision
from evaluation.report.charts import Axis, Series, line_chart
from evaluation.report.curves import precision_recall_steps, running_mean
from evaluation.report.run_folder import RunFolder, number, series_of
from models.alarms import SPREADS
from utils.frame import CLASSES

# Lines that the style sheet knows: ink, part-0 to part-4, ramp-0 to ramp-7 (an order), class-0 to class-2.
PARTS, RAMP = 5, 8
SMOOTH_SHARE = 20  # losses of single batches are noisy: means are over this part of the run
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2 2 2 2 2")
_STEP = Axis("step", whole=True)
# What the parts of the loss measure (models/criterion.py).
_PART_TITLES = {
    "loss_cls": "classes",
    "loss_pts": "points",
    "loss_dir": "directions",
    "loss_noisy_cls": "classes of noisy lines",
    "loss_noisy_pts": "points of noisy lines",
    "loss_noisy_dir": "directions of noisy lines",
    "loss_seg": "segmentation in the images",
    "loss_scene": "segmentation from scene tokens",
    "loss_ground": "segmentation on the ground",
}


def loss_charts(run: RunFolder) -> list[str]:
    """The total, its parts after the last decoder layer, and each part after every layer."""
    steps = series_of(run.train, "step")
    window = 2 * (len(steps) // (2 * SMOOTH_SHARE)) + 1
    smoothed = f" Running mean of {window} logged steps." if window > 1 else ""
    loss = series_of(run.train, "loss")
    total = [Series("each logged step", steps, loss, "quiet"), Series("mean", steps, running_mean(loss, window), "ink")]
    total = total if window > 1 else [Series("loss", steps, loss, "ink")]
    charts = [line_chart("Total loss", total, _STEP, Axis("weighted sum", log=True), smoothed.strip())]

    def line(title: str, name: str, style: str, dash: str = "") -> Series:
        return Series(title, steps, running_mean(series_of(run.train, name), window), style, dash)

    by_layer, whole = _loss_names(run.train)
    shown = {f"{part}_{layers[-1]}": part for part, layers in by_layer.items()} | {name: name for name in whole}
    parts = [
        line(_PART_TITLES.get(part, part), name, f"part-{at % PARTS}", _dash(at))
        for at, (name, part) in enumerate(shown.items())
    ]
    titles = ", ".join(_PART_TITLES.get(part, part) for part in by_layer)
    note = f"After the last decoder layer: {titles}." if whole and by_layer else ""
    charts.append(line_chart("Parts of the loss", parts, _STEP, Axis("unweighted", log=True), note + smoothed))
    for part, layers in by_layer.items():
        lines = [
            line(f"after layer {layer}" if layer else "before the decoder", f"{part}_{layer}", _ramp(at, len(layers)))
            for at, layer in enumerate(layers)
        ]
        title = f"Loss of the {_PART_TITLES.get(part, part)} by decoder layer"
        charts.append(line_chart(title, lines, _STEP, Axis("unweighted", log=True), smoothed.strip()))
    return charts


def optimizer_charts(run: RunFolder) -> list[str]:
    """Learning rates, gradient norm, throughput and the spread of the model's states across scenes."""
    steps = series_of(run.train, "step")
    rates = _learning_rates(run, steps)
    note = f"The same for {rates[0].name}." if len(rates) == 1 else ""
    charts = [line_chart("Learning rates", rates, _STEP, Axis("learning rate"), note)]
    clip = number(run.setting("grad_clip"))
    norm = Series("gradient norm", steps, series_of(run.train, "grad_norm"), "ink")
    note = f"Before clipping to {clip:g}." if np.isfinite(clip) else "Before clipping."
    charts.append(line_chart("Gradient norm", [norm], _STEP, Axis("norm", log=True), note))
    speed = Series("throughput", steps, series_of(run.train, "samples_per_s"), "ink")
    charts.append(line_chart("Throughput", [speed], _STEP, Axis("samples/s"), "Of all ranks together."))
    spread = [
        Series(states, steps, series_of(run.train, name), f"part-{index}", DASHES[index])
        for index, (name, states) in enumerate(SPREADS.items())
    ]
    note = ("Standard deviation across scenes, as a share of that of all values. Near 0 the states have collapsed: "
            "every scene looks the same to the decoder.")
    charts.append(line_chart("Spread across the scenes of a batch", spread, _STEP, Axis("share of the spread"), note))
    return charts


def validation_chart(run: RunFolder) -> str:
    """mAP and AP of each class by epoch."""
    epochs = series_of(run.val, "epoch")
    mean = np.array([number(record["result"]["mAP"]) for record in run.val])
    lines = [Series("mAP", epochs, mean, "ink strong", markers=True)]
    for label, name in enumerate(CLASSES):
        values = np.array([number(record["result"][name].get("AP")) for record in run.val])
        lines.append(Series(name, epochs, values, f"class-{label}", DASHES[label], markers=True))
    protocols = sorted({str(record["result"].get("protocol")) for record in run.val})
    note = f"Protocol {' and '.join(protocols)}. Epoch 0 is the untrained model." if run.val else ""
    return line_chart("mAP and AP of each class by epoch", lines, Axis("epoch", whole=True), Axis("AP"), note)


def precision_recall_charts(hits: Sequence[ClassHits], thresholds: Sequence[float]) -> list[str]:
    """A chart for each class with a line for each threshold in metres."""
    charts = []
    for label, (name, of_class) in enumerate(zip(CLASSES, hits, strict=True)):
        lines = []
        for column, threshold in enumerate(thresholds):
            true_positive = of_class.true_positive[:, column]
            recall, precision = precision_recall_steps(true_positive, of_class.num_gt)
            ap = f"AP {average_precision(true_positive, of_class.num_gt):.3f}" if of_class.num_gt else "no AP"
            dash = DASHES[len(thresholds) - 1 - column]  # the widest threshold, the highest curve, is solid
            lines.append(Series(f"{float(threshold)} m ({ap})", recall, precision, f"class-{label}", dash))
        note = f"{of_class.num_gt:,} lines to find, {len(of_class.scores):,} predictions."
        if of_class.num_gt and not of_class.true_positive.any():
            note += f" None of them is within {max(thresholds)} m of one."
        charts.append(line_chart(name, lines, Axis("recall", limits=(0, 1)), Axis("precision", limits=(0, 1)), note))
    return charts


def calibration_chart(by_class: Sequence[Calibration], threshold: float) -> str:
    """Share of true positives over the mean score, in bins of the score, a line for each class."""
    lines = [Series("", np.array([0.0, 1.0]), np.array([0.0, 1.0]), "reference", "3 3")]
    for label, (name, bins) in enumerate(zip(CLASSES, by_class, strict=True)):
        error = bins.expected_error
        legend = name if error is None else f"{name} (mean gap {error:.2f})"
        lines.append(
            Series(legend, bins.score, bins.true_share, f"class-{label}", DASHES[label], markers=True)
        )
    note = (
        f"{NUM_BINS} bins of the score; true at {threshold} m, duplicates are false. On the dotted diagonal a "
        "score is the probability of being right; below it the model is overconfident."
    )
    return line_chart(
        "Share of true positives by score", lines, Axis("mean score", limits=(0, 1)),
        Axis("true share", limits=(0, 1)), note,
    )  # fmt: skip


def _loss_names(records: Sequence[dict]) -> tuple[dict[str, list[int]], list[str]]:
    """Parts that every decoder layer has, with their layers, and the parts that come once."""
    by_layer: dict[str, list[int]] = {}
    whole = []
    for name in dict.fromkeys(name for record in records for name in record):
        if match := re.fullmatch(r"(loss_[a-z_]*[a-z])_(\d{1,3})", name):
            by_layer.setdefault(match[1], []).append(int(match[2]))
        elif name.startswith("loss_"):
            whole.append(name)
    return {part: sorted(layers) for part, layers in by_layer.items()}, whole


def _learning_rates(run: RunFolder, steps: np.ndarray) -> list[Series]:
    """A line for each parameter group; groups with the same rates share one."""
    rows = [record.get("lr") if isinstance(record.get("lr"), dict) else {} for record in run.train]
    names_of: dict[tuple[float, ...], list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        rates = tuple(number(row.get(name)) for row in rows)
        names_of.setdefault(rates, []).append(name)
    return [
        Series(", ".join(members), steps, np.array(rates), f"part-{at % PARTS}", _dash(at))
        for at, (rates, members) in enumerate(names_of.items())
    ]


def _dash(at: int) -> str:
    return DASHES[at % len(DASHES)]


def _ramp(at: int, count: int) -> str:
    """The class of one of `count` ordered lines; the last is the strongest."""
    return f"ramp-{round(at * (RAMP - 1) / max(count - 1, 1))}"
