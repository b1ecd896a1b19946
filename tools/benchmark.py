#!/usr/bin/env python3
"""Measure a stage of the pipeline: python tools/benchmark.py <stage> [settings] [--json F]

Examples:
  python tools/benchmark.py gt --dataroot D --version v1.0-mini --json gt.json
  python tools/benchmark.py eval --json eval.json
  python tools/benchmark.py params
  python tools/benchmark.py memory --batch-size 4 --precision fp16 --gradient-checkpointing on
  python tools/benchmark.py step --batch-size 1 --layers 2
  python tools/benchmark.py attention --batch-size 1
  python tools/benchmark.py optimisations --preset base --layers 1 --batch-size 1
  python tools/benchmark.py checkpoint --folder outputs
  python tools/benchmark.py loader --images IMAGES --json loader.json
  python tools/benchmark.py criterion --json criterion.json
  python tools/benchmark.py startup --num-workers 4
  python tools/benchmark.py scaling --preset tiny --json scaling.json
  python tools/benchmark.py cost --mfu 0.5 --ranks 4
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.benchmarks.common import write_result  # noqa: E402
from utils.command_line import documented_parser  # noqa: E402
from utils.errors import UserError, run_cli  # noqa: E402
from utils.files import require_writable  # noqa: E402

# Name of a stage -> its module in tools/benchmarks.
STAGES = {
    "gt": "gt", "eval": "evaluation", "params": "params", "memory": "memory", "step": "step",
    "checkpoint": "checkpoint", "loader": "loader", "criterion": "criterion", "startup": "startup",
    "scaling": "scaling", "cost": "cost", "attention": "attention", "optimisations": "optimisations",
}  # fmt: skip
# Packages that training does without, as some stages do: a machine for training alone may not have them.
OPTIONAL = {"shapely": "shapely", "nuscenes": "nuscenes-devkit", "cv2": "opencv-python-headless"}


def load_stages() -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Stage -> its module, and of those that cannot be loaded here -> the package that is missing."""
    modules, missing = {}, {}
    for stage, name in STAGES.items():
        try:
            modules[stage] = import_module(f"tools.benchmarks.{name}")
        except ModuleNotFoundError as error:
            package = OPTIONAL.get((error.name or "").partition(".")[0])
            if package is None:
                raise
            missing[stage] = package
    return modules, missing


def parse_args() -> argparse.Namespace:
    modules, missing = load_stages()
    if len(sys.argv) > 1 and sys.argv[1] in missing:
        package = missing[sys.argv[1]]
        raise UserError(f"{sys.argv[1]}: needs {package}, which is not installed; pip install -r requirements.txt")
    parser = documented_parser(__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    for name, module in modules.items():
        stage = stages.add_parser(name, help=module.__doc__.splitlines()[0], description=module.__doc__)
        module.add_arguments(stage)
        stage.add_argument("--json", help="write settings, machine and figures here too")
        stage.set_defaults(run=module.run)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    require_writable(args.json)
    result = args.run(args)
    settings = {key: value for key, value in vars(args).items() if key not in ("stage", "json", "run")}
    write_result(args.json, args.stage, settings, result)


if __name__ == "__main__":
    run_cli(main)
