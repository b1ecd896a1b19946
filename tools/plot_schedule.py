"""Draw the learning-rate schedule of a run: the whole of it, and its beginning, where the warm-up shows.

Example (the picture of TRAINING_GUIDE.md, 24 epochs of 28,130 samples in steps of 4):
  python tools/plot_schedule.py --total-steps 168768 --warmup-steps 500 --output docs/learning_rate.svg
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from evaluation.report.charts import HEIGHT, WIDTH, Axis, Series, line_chart  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import replacing  # noqa: E402
from utils.optim import lr_factor  # noqa: E402

TITLE_HEIGHT, GAP = 24, 20  # units of the charts' view box
STYLE = """<style>
text { fill: #5b6167; font: 12px system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
.title { fill: #1d2023; font-weight: 600; }
.grid { stroke: #d7dadd; } .axis { stroke: #5b6167; }
polyline { fill: none; stroke: #0072b2; stroke-width: 2; }
</style>"""


def parse_args() -> argparse.Namespace:
    parser = documented_parser(__doc__)
    parser.add_argument("--total-steps", type=int, required=True, help="optimizer steps of the run")
    parser.add_argument("--warmup-steps", type=int, default=500)
    parser.add_argument("--output", required=True, help="an .svg file")
    args = parser.parse_args()
    if not 0 <= args.warmup_steps < args.total_steps:
        raise UserError(f"--warmup-steps {args.warmup_steps}: must be at least 0 and below --total-steps "
                        f"{args.total_steps}; give fewer")
    return args


def main() -> None:
    args = parse_args()
    picture = draw_schedule(args.total_steps, args.warmup_steps)
    with replacing(args.output) as file:
        file.write(picture.encode())


def draw_schedule(total_steps: int, warmup_steps: int) -> str:
    """An SVG file's text: the share of the base learning rate over all steps, and over the first ones."""
    start = min(max(3 * warmup_steps, 10), total_steps)
    titles = (f"All {total_steps:,} steps", f"The first {start:,}: {warmup_steps:,} of warm-up")
    parts = []
    for place, (title, shown) in enumerate(zip(titles, (total_steps, start), strict=True)):
        left = place * (WIDTH + GAP)
        chart = _chart(title, shown, total_steps, warmup_steps)
        parts.append(
            f'<text class="title" x="{left + 4}" y="16">{title}</text>'
            f'<svg x="{left}" y="{TITLE_HEIGHT}" width="{WIDTH}" height="{HEIGHT}"{chart.removeprefix("<svg")}'
        )
    width, height = 2 * WIDTH + GAP, HEIGHT + TITLE_HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'{STYLE}<rect width="{width}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def _chart(title: str, shown: int, total_steps: int, warmup_steps: int) -> str:
    """The <svg> of a chart of the first `shown` steps."""
    steps = np.unique(np.linspace(0, shown - 1, min(shown, 501)).round())
    factors = np.array([lr_factor(int(step), warmup_steps, total_steps) for step in steps])
    figure = line_chart(title, [Series("", steps, factors, "schedule")], Axis("optimizer step", whole=True),
                        Axis("share of the base learning rate", limits=(0.0, 1.0)))
    return figure[figure.index("<svg") : figure.index("</svg>") + len("</svg>")]


if __name__ == "__main__":
    run_cli(main)
