"""The report of a run as one HTML page that needs no other file, no network and no script."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path

from evaluation.calibration import NUM_BINS, Calibration, calibration
from evaluation.chamfer_ap import ClassHits
from evaluation.pictures.canvas import CLASS_COLOURS, CLASS_TITLES
from evaluation.report.gallery import GallerySample
from evaluation.report.html_parts import (
    class_swatch,
    flatten_settings,
    format_count,
    format_number,
    html_table,
    image_tag,
)
from evaluation.report.run_charts import (
    calibration_chart,
    loss_charts,
    optimizer_charts,
    precision_recall_charts,
    validation_chart,
)
from evaluation.report.run_folder import RunFolder, number
from evaluation.sample_f1 import F1_THRESHOLD
from utils.frame import CLASSES

_STYLE_SHEET = Path(__file__).with_suffix(".css")
# Whatever a file of the run brought into the page, a browser would fetch nothing and run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_COMMIT_LENGTH = 12  # characters; config.json has the whole
_SECTIONS = {"result": "Result", "scores": "Precision, recall and scores", "samples": "Samples",
             "training": "Training", "settings": "Settings and versions"}  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint scored for the report."""

    checkpoint: str
    data: str  # version, split and range in words
    gt_digest: str  # of the ground-truth cache
    num_samples: int
    command: str  # gives the same table again
    result: dict  # as `evaluate` returns it
    hits: Sequence[ClassHits]
    min_scores: Sequence[float]  # of each class, for the predictions that the gallery shows
    gallery: Mapping[str, Sequence[GallerySample]]  # Best, Median, Worst


def render_report(
    run: RunFolder, evaluation: Evaluation | None, missing: str, versions: Mapping[str, str]
) -> str:
    """The whole page. missing: why there is no evaluation, a sentence; versions: of the software, by name."""
    colours = "".join(f"--class-{label}:rgb{colour};" for label, colour in enumerate(CLASS_COLOURS))
    contents = {
        "result": _result_section(run, evaluation, missing),
        "scores": _score_section(evaluation, missing),
        "samples": _sample_section(evaluation, missing),
        "training": _training_section(run),
        "settings": _settings_section(run, versions),
    }
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in _SECTIONS.items())
    sections = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{contents[name]}</section>'
        for name, title in _SECTIONS.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)}: map detection report</title>"
        f'<style>:root{{{colours}}}{_STYLE_SHEET.read_text("utf-8")}</style></head>'
        f"<body><header><h1>Map detection report: {escape(run.name)}</h1>{_facts(run, evaluation)}"
        f'{_alerts(run, evaluation, missing)}<nav aria-label="Sections">{links}</nav></header>'
        f"<main>{sections}</main></body></html>\n"
    )


def _facts(run: RunFolder, evaluation: Evaluation | None) -> str:
    """What was trained, when and on what, as a list of terms."""
    last = max((record["epoch"] for record in (*run.train, *run.val)), default=0)
    steps = max((record["step"] for record in (*run.train, *run.val)), default=0)
    written = datetime.fromtimestamp((run.path / "metrics.jsonl").stat().st_mtime).astimezone()
    facts = {
        "Preset": run.setting("preset", "not recorded"),
        "Language model": _nested(run.settings, "model_config", "llm_path") or "not recorded",
        "Started": _started(run),
        "Log last written": f"{written:%Y-%m-%d %H:%M %Z}",
        "Trained": f"{last:g} of {run.setting('epochs', '?')} epochs, {steps:g} steps",
        "Commit": str(run.settings.get("commit") or "not recorded")[:_COMMIT_LENGTH],
        "Machine": _nested(run.settings, "machine", "gpu") or _nested(run.settings, "machine", "processor")
        or "not recorded",
        "Data": _data(run),
        "Splits": f"trained on {run.setting('train_split', '?')}, validated on {run.setting('val_split', '?')}",
        "Range": f"{run.setting('pc_range', '?')} m, ground truth in the style of {run.setting('gt_style', '?')}",
        "Scored for this report": f"{evaluation.num_samples:,} samples, {evaluation.data}" if evaluation else "nothing",
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _alerts(run: RunFolder, evaluation: Evaluation | None, missing: str) -> str:
    """What a reader has to know before trusting the page; nothing if all is well."""
    alerts = [] if evaluation else [missing]
    if run.unreadable:
        lines = ", ".join(map(str, run.unreadable[:5])) + (", ..." if len(run.unreadable) > 5 else "")
        passed_over = format_count(len(run.unreadable), "broken line")
        alerts.append(f"{passed_over} of metrics.jsonl passed over (line {lines}), as a killed run leaves them.")
    if run.superseded:
        left_out = format_count(run.superseded, "record")
        alerts.append(f"{left_out} of metrics.jsonl left out: a resumption took the same steps again.")
    validated_on = run.validated_on()
    if evaluation and validated_on not in (None, evaluation.gt_digest):
        alerts.append("Scored for this report on other ground truth than the run was validated on: the scores "
                      "cannot be compared.")
    last, planned = max((record["epoch"] for record in run.val), default=0), number(run.setting("epochs"))
    if last < planned:
        alerts.append(f"The run is not finished: {last:g} of {planned:g} epochs are trained and validated.")
    items = "".join(f"<li>{escape(alert)}</li>" for alert in alerts)
    return f'<div class="alerts" role="note"><ul>{items}</ul></div>' if alerts else ""


def _result_section(run: RunFolder, evaluation: Evaluation | None, missing: str) -> str:
    """mAP, the tables and the course of the validations."""
    best = run.best_val()
    if evaluation:
        result = evaluation.result
        source = f"{evaluation.checkpoint} on {evaluation.num_samples:,} samples of {evaluation.data}."
        again = f"<p class=\"note\">The same table again: <code>{escape(evaluation.command)}</code></p>"
    elif best:
        result, again = best["result"], ""
        validations = format_count(len(run.val), "validation")
        source = f"The best of the run's own {validations}, after epoch {best['epoch']:g}. {missing}"
    else:
        reason = "the validation split has no ground truth" if run.val else "the run has not validated yet"
        return f'<p class="missing">No AP: {reason}. {escape(missing)}</p>'
    headline = f'<p class="headline"><strong>{format_number(result["mAP"])}</strong> mAP</p><p>{escape(source)}</p>'
    return (
        f'<div class="beside"><div>{headline}{_ap_table(result)}</div>{validation_chart(run)}</div>'
        f"{_detail_table(result)}{again}"
    )


def _ap_table(result: dict) -> str:
    thresholds = [float(threshold) for threshold in result["thresholds"]]
    columns = [f"AP@{threshold}" for threshold in thresholds] + ["AP"]
    rows = [[name, *(format_number(result[name].get(column)) for column in columns)] for name in CLASSES]
    rows.append(["mAP", *[""] * len(thresholds), format_number(result["mAP"])])
    caption = f"Chamfer AP, protocol {result.get('protocol')}; thresholds in metres; – means no ground truth."
    return html_table(caption, ["class", *columns], rows, last_is_total=True)


def _detail_table(result: dict) -> str:
    """What `evaluate` says beside AP: a row a figure, so that a phone shows all of it."""
    columns = []
    for name in CLASSES:
        details = result["details"][name]
        best = details.get("best_f1") if isinstance(details.get("best_f1"), dict) else {}
        figures = [details.get("recall"), details.get("matched_chamfer")]
        figures += [best.get(key) for key in ("f1", "threshold", "precision", "recall", "score")]
        counts = [format_number(details.get(key), ",.0f") for key in ("num_gt", "num_pred")]
        columns.append([*counts, *map(format_number, figures)])
    names = ["ground truth", "predicted", "recall", "mean Chamfer distance, m", "best F1", "judged at, m",
             "precision there", "recall there", "score there"]  # fmt: skip
    rows = [[name, *cells] for name, *cells in zip(names, *columns, strict=True)]
    largest = max(float(threshold) for threshold in result["thresholds"])
    caption = f"At {largest} m: recall over all predictions, and the matched lines. Then where the F1 score is best."
    return html_table(caption, ["", *CLASSES], rows)


def _score_section(evaluation: Evaluation | None, missing: str) -> str:
    """Precision-recall curves and calibration."""
    if evaluation is None:
        return f'<p class="missing">{escape(missing)}</p>'
    thresholds = evaluation.result["thresholds"]
    column = thresholds.index(F1_THRESHOLD)
    bins = [calibration(of_class.scores, of_class.true_positive[:, column]) for of_class in evaluation.hits]
    curves = "".join(precision_recall_charts(evaluation.hits, thresholds))
    rows = [
        [f"{index / NUM_BINS:g} to {(index + 1) / NUM_BINS:g}", *(_bin_cell(one, index) for one in bins)]
        for index in range(NUM_BINS)
    ]
    caption = f"Share of the predictions that is true at {F1_THRESHOLD} m, and the number of predictions."
    table = html_table(caption, ["score", *CLASSES], rows)
    return (
        '<p class="note">Area below a curve is the AP: at each recall the best precision at this or a higher '
        f'recall.</p><div class="charts">{curves}</div><h3>Calibration of scores</h3>'
        f'<div class="beside">{calibration_chart(bins, F1_THRESHOLD)}{table}</div>'
    )


def _bin_cell(bins: Calibration, index: int) -> str:
    """`0.30 of 60`; a dash where no prediction has such a score."""
    at = bins.bin.tolist().index(index) if index in bins.bin else None
    return "–" if at is None else f"{bins.true_share[at]:.2f} of {bins.count[at]:,}"


def _sample_section(evaluation: Evaluation | None, missing: str) -> str:
    """The gallery."""
    if evaluation is None or not any(evaluation.gallery.values()):
        return f'<p class="missing">{escape(missing) if evaluation is None else "No sample was asked for."}</p>'
    scores = ", ".join(f"{name} {score:.2f}" for name, score in zip(CLASSES, evaluation.min_scores, strict=True))
    legend = "".join(
        f"<li>{class_swatch(f'class-{label} strong')}{title}</li>" for label, title in enumerate(CLASS_TITLES)
    )
    parts = [
        f"<p>Ranked by F1 at {F1_THRESHOLD} m (protocol maptr) of the predictions shown, which are those that reach "
        f"the score where their class has its best F1 on this split: {escape(scores)}. In the cameras predictions are "
        f'solid and ground truth is dashed white. A group shows one sample a scene if there are scenes enough.</p>'
        f'<ul class="legend">{legend}</ul>'
    ]
    for title, samples in evaluation.gallery.items():
        if samples:
            cells = "".join(map(_sample, samples))
            parts.append(f'<h3>{title}</h3><div class="samples">{cells}</div>')
    return "".join(parts)


def _sample(sample: GallerySample) -> str:
    """One sample: a heading, both maps, the cameras."""
    f1 = sample.f1
    maps = "".join(
        f"<figure><figcaption>{name}</figcaption>{image_tag(picture)}</figure>"
        for name, picture in zip(("Ground truth", "Prediction"), sample.maps, strict=True)
    )
    return (
        f'<article class="sample"><h4>F1 {format_number(f1.value, ".2f")}: {f1.true} found, {f1.missed} missed, '
        f"{f1.false} false</h4>"
        f'<div class="pictures"><div class="maps">{maps}</div>'
        f'<div class="cameras">{"".join(map(image_tag, sample.cameras))}</div></div>'
        f'<p class="note">{escape(sample.scene)}, {escape(sample.location)}, <code>{escape(sample.token)}</code></p>'
        "</article>"
    )


def _training_section(run: RunFolder) -> str:
    if not run.train:
        return '<p class="missing">No training step is logged yet.</p>'
    return (
        f'<h3>Losses</h3><div class="charts">{"".join(loss_charts(run))}</div>'
        f'<h3>Optimizer and speed</h3><div class="charts">{"".join(optimizer_charts(run))}</div>'
    )


def _settings_section(run: RunFolder, versions: Mapping[str, str]) -> str:
    """config.json and versions, folded."""
    parts = []
    for title, value in run.settings.items():
        rows = [[name, shown] for name, shown in flatten_settings(value)]
        parts.append(html_table(f"config.json: {title}", ["setting", "value"], rows, kind="settings"))
    caption = "Software that made this report; that of the training stands under config.json: machine"
    parts.append(html_table(caption, ["package", "version"], list(versions.items()), kind="settings"))
    return f"<details><summary>All settings of the run, and versions</summary>{''.join(parts)}</details>"


def _started(run: RunFolder) -> str:
    """As the run has recorded it, in the time zone of its machine; older runs say it in their folder's name alone."""
    try:
        return f"{datetime.fromisoformat(run.settings['started']):%Y-%m-%d %H:%M %Z}"
    except (KeyError, TypeError, ValueError):
        match = re.search(r"(\d{8}_\d{6})$", run.name)
    try:
        return f"{datetime.strptime(match[1], '%Y%m%d_%H%M%S'):%Y-%m-%d %H:%M}" if match else "not recorded"
    except ValueError:
        return "not recorded"


def _data(run: RunFolder) -> str:
    counts = [_nested(run.settings, "samples", split) for split in ("train", "val")]
    named = str(run.setting("version", "not recorded"))
    return named if None in counts else f"{named}, {counts[0]:,} training and {counts[1]:,} validation samples"


def _nested(settings: dict, part: str, name: str) -> object:
    values = settings.get(part)
    return values.get(name) if isinstance(values, dict) else None
