"""What is in a model: parameters of each part, frozen or trained, and at which learning rate."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from utils.optim import parameter_groups


@dataclass(frozen=True)
class PartRow:
    """One top-level part of the model."""

    part: str
    parameters: int
    trained: int  # of these
    dtype: str
    group: str  # its learning-rate group, empty when frozen


def parameter_rows(model: nn.Module) -> list[PartRow]:
    """A row for each top-level part that has parameters; also on the meta device."""
    group_of = {name: group for group, members in parameter_groups(model).items() for name, _ in members}
    rows = []
    for part, module in model.named_children():
        named = [(f"{part}.{name}", parameter) for name, parameter in module.named_parameters()]
        if not named:
            continue
        rows.append(
            PartRow(
                part,
                sum(p.numel() for _, p in named),
                sum(p.numel() for _, p in named if p.requires_grad),
                "/".join(sorted({str(p.dtype).removeprefix("torch.") for _, p in named})),
                "/".join(sorted({group_of[name] for name, p in named if p.requires_grad})),
            )
        )
    return rows


def format_parameter_table(rows: list[PartRow], learning_rates: Mapping[str, float]) -> str:
    """Rows as an aligned table, the totals last; learning_rates by group."""
    cells = [["part", "parameters", "state", "dtype", "group", "learning rate"]]
    for row in rows:
        state = "trained" if row.trained == row.parameters else "frozen" if not row.trained else "partly trained"
        rates = "/".join(f"{learning_rates[group]:g}" for group in row.group.split("/") if group)
        cells.append([row.part, f"{row.parameters:,}", state, row.dtype, row.group, rates])
    total, trained = sum(row.parameters for row in rows), sum(row.trained for row in rows)
    cells.append(["total", f"{total:,}", f"{trained:,} trained ({trained / total:.2%})", "", "", ""])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for line in cells:
        text = [cell.rjust(width) if column == 1 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(text).rstrip())
    return "\n".join(lines)
