"""Parameters of each part at full size, on the meta device: seconds, and no memory."""

import argparse
from dataclasses import asdict

import torch

from models.detector import build_detector
from tools.benchmarks.full_model import add_model_arguments, config_from
from utils.device import PRECISIONS
from utils.parameter_table import format_parameter_table, parameter_rows

# The defaults of train_map_detection.py; --lora-rank adds the last.
LEARNING_RATES = {"qformer": 1e-5, "queries": 1e-4, "decoder": 1e-4, "lora": 1e-4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--precision", default="fp16", choices=PRECISIONS, help="of the frozen parts")


def run(args: argparse.Namespace) -> dict:
    """Print the table; returns it as rows."""
    model = build_detector(config_from(args), torch.device("meta"), PRECISIONS[args.precision])
    rows = parameter_rows(model)
    print(format_parameter_table(rows, LEARNING_RATES))
    return {
        "rows": [asdict(row) for row in rows],
        "parameters": sum(row.parameters for row in rows),
        "trained": sum(row.trained for row in rows),
    }
