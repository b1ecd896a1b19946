"""The checks of test_training_setup.py in their order, and its flags."""

import argparse

from data.gt_cache import GT_STYLES
from data.splits import SPLITS
from models.config import PRESETS, ModelConfig
from models.flags import add_model_arguments, config_from_flags
from training.environment_checks import EnvironmentChecks
from training.model_checks import ModelChecks
from training.weight_checks import check_blip2_weights, check_llm_weights
from utils.checklist import Checklist
from utils.command_line import documented_parser
from utils.errors import UserError
from utils.requirements import check_packages, check_python

_BASICS = ("Python", "packages")


def parse_args(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of test_training_setup.py. Raises UserError for a value that cannot be meant."""
    parser = documented_parser(description)
    data = parser.add_argument_group("data, as for train_map_detection.py")
    data.add_argument("--dataroot", help="nuScenes folder (default: $NUSCENES_DATAROOT, else data/nuscenes if there)")
    data.add_argument("--gt-cache-train", help="default: where tools/generate_gt_cache.py puts it")
    data.add_argument("--gt-cache-val", help="the same")
    data.add_argument("--version", default="v1.0-trainval", help="of nuScenes (default: %(default)s)")
    data.add_argument("--train-split", default="train", choices=SPLITS, help="default: %(default)s")
    data.add_argument("--val-split", default="val", choices=SPLITS, help="default: %(default)s")
    data.add_argument("--gt-style", default="maptr", choices=GT_STYLES, help="default: %(default)s")
    add_model_arguments(parser)
    parser.add_argument("--output-dir", default="outputs", help="where runs will lie (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=2, help="samples in the model's checks, default: %(default)s")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    return args


def run(checklist: Checklist, args: argparse.Namespace) -> None:
    """All checks; ends the program with exit code 1 when one failed. Raises UserError for flags that cannot be."""
    qformer_source = args.qformer_pretrained or PRESETS[args.preset].qformer_pretrained
    config = config_from_flags(args) if qformer_source == "none" else None  # from others it reads, so it waits
    checklist.run("Python", check_python)
    checklist.run("packages", check_packages, ["Python"])
    environment = run_environment_checks(checklist, args, qformer_source)
    if config is None and checklist.has_passed("packages", "BLIP-2 weights"):
        config = config_from_flags(args)
    _run_model_checks(checklist, args, config, environment)
    checklist.finish()


def run_environment_checks(checklist: Checklist, args: argparse.Namespace, qformer_source: str) -> EnvironmentChecks:
    """The checks around the model, which hold what they found."""
    checks = EnvironmentChecks(args)
    checklist.run("GPU", checks.check_gpu, _BASICS)
    checklist.run("disk", checks.check_disk)
    checklist.run("dataroot", checks.check_dataroot)
    checklist.run("tables", checks.check_tables, ["dataroot"])
    checklist.run("map expansion", checks.check_map_expansion, ["dataroot"])
    checklist.run("train cache", lambda: checks.check_cache("train"), ["dataroot"])
    checklist.run("val cache", lambda: checks.check_cache("val"), ["dataroot"])
    checklist.run("BLIP-2 weights", lambda: check_blip2_weights(qformer_source), _BASICS)
    checklist.run("LLM weights", lambda: check_llm_weights(args.llm_path or PRESETS[args.preset].llm_path), _BASICS)
    return checks


def _run_model_checks(
    checklist: Checklist, args: argparse.Namespace, config: ModelConfig | None, environment: EnvironmentChecks
) -> None:
    """The five checks of the model; config None: what it starts from is missing, so none of them will run."""
    checks = ModelChecks(config, args.batch_size) if config else None
    for number, (name, check, needs) in enumerate(
        [
            ("model", lambda: checks.check_model(), [*_BASICS, "GPU", "BLIP-2 weights", "LLM weights"]),
            ("parameter groups", lambda: checks.check_parameter_groups(), ["model"]),
            ("forward", lambda: checks.check_forward(), ["model"]),
            ("backward", lambda: checks.check_backward(), ["forward"]),
            ("data", lambda: checks.check_data(environment.caches.get("train"), environment.dataroot),
             ["forward", "dataroot", "train cache"]),
        ],
        start=1,
    ):  # fmt: skip
        checklist.run(name, check, needs, f"[{number}/5] ")
