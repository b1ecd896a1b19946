"""Parameter groups and the learning-rate schedule."""

import math

import torch
from torch import nn

# Group -> the letter it has in the log line. GROUPS are always there, LLM_GROUPS when something of the LLM trains.
GROUPS = {"qformer": "q", "queries": "m", "decoder": "d"}
LLM_GROUPS = {"lora": "l"}

# Top-level part of the detector -> group. What is new on the way into the LLM learns with the map queries.
_GROUP_OF_PART = {
    "qformer": "qformer",
    "vision": "queries",
    "geometry": "queries",
    "projection": "queries",
    "place": "queries",
    "ground_tokens": "queries",
    "map_queries": "queries",
    "llm": "lora",
    "image_features": "decoder",
    "ground_grid": "decoder",
    "decoder": "decoder",
    "segmentation": "decoder",
}


def parameter_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Every trainable parameter in exactly one of GROUPS and LLM_GROUPS, as (name, parameter)."""
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in GROUPS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_GROUP_OF_PART[name.split(".", 1)[0]], []).append((name, parameter))
    return groups


def build_optimizer(model: nn.Module, learning_rates: dict[str, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW with one group for each of parameter_groups; learning_rates has a rate for each."""
    groups = [
        {"name": name, "params": [p for _, p in members], "lr": learning_rates[name]}
        for name, members in parameter_groups(model).items()
    ]
    # Fused: one pass over the weights, where a tiny model's step spends a twentieth of its time on AdamW otherwise.
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=weight_decay, fused=True)


def lr_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the base learning rate at a step: linear warm-up, then half a cosine down to 0 at total_steps."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rates(optimizer: torch.optim.Optimizer, learning_rates: dict[str, float], factor: float) -> None:
    """Give each group of build_optimizer its own of learning_rates times factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rates[group["name"]] * factor


def gradient_norms(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """L2 norm of the gradients of each group that has any, by name, scalars on their device."""
    norms = {}
    for group in optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        if gradients:
            norms[group["name"]] = torch.nn.utils.get_total_norm(gradients)
    return norms


def format_learning_rates(optimizer: torch.optim.Optimizer) -> str:
    """`LR: q=1.00e-05 m=1.00e-04 d=1.00e-04`, and ` l=1.00e-04` when something of the LLM trains."""
    letters = GROUPS | LLM_GROUPS
    return "LR: " + " ".join(f"{letters[group['name']]}={group['lr']:.2e}" for group in optimizer.param_groups)
