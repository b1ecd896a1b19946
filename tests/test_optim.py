from itertools import pairwise

import pytest
import torch

from utils.optim import (
    GROUPS,
    LLM_GROUPS,
    build_optimizer,
    format_learning_rates,
    gradient_norms,
    lr_factor,
    parameter_groups,
    set_learning_rates,
)


def test_linear_warm_up_then_half_a_cosine():
    factors = [lr_factor(step, warmup_steps=4, total_steps=14) for step in range(15)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[9] == pytest.approx(0.5) and factors[14] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(factors[3:]))
    assert lr_factor(20, 4, 14) == pytest.approx(0.0), "past the end it stays at zero"
    assert lr_factor(0, 0, 10) == 1.0, "no warm-up"


class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qformer, self.map_queries, self.decoder = (torch.nn.Linear(2, 2) for _ in range(3))


def test_groups_have_their_own_rates_and_the_log_names_them():
    rates = dict(zip(GROUPS, (1e-5, 1e-4, 2e-4), strict=True))
    optimizer = build_optimizer(Detector(), rates, weight_decay=0.01)
    assert format_learning_rates(optimizer) == "LR: q=1.00e-05 m=1.00e-04 d=2.00e-04"
    set_learning_rates(optimizer, rates, 0.5)
    assert format_learning_rates(optimizer) == "LR: q=5.00e-06 m=5.00e-05 d=1.00e-04"
    assert all(g["betas"] == (0.9, 0.999) and g["weight_decay"] == 0.01 for g in optimizer.param_groups)


def test_what_trains_inside_the_llm_has_a_group_of_its_own_and_only_then():
    detector = Detector()
    detector.llm = torch.nn.Linear(2, 2).requires_grad_(False)
    assert tuple(parameter_groups(detector)) == tuple(GROUPS)
    detector.llm.weight.requires_grad_()
    assert [name for name, _ in parameter_groups(detector)["lora"]] == ["llm.weight"]
    optimizer = build_optimizer(detector, dict.fromkeys([*GROUPS, *LLM_GROUPS], 1e-4), weight_decay=0.01)
    assert format_learning_rates(optimizer) == "LR: q=1.00e-04 m=1.00e-04 d=1.00e-04 l=1.00e-04"


def test_the_norm_of_a_group_is_that_of_its_gradients_and_of_no_other():
    detector = Detector()
    optimizer = build_optimizer(detector, dict.fromkeys(GROUPS, 1.0), weight_decay=0.0)
    detector.qformer.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    detector.qformer.bias.grad = torch.tensor([0.0, 4.0])
    detector.decoder.bias.grad = torch.tensor([0.0, 2.0])
    assert {name: norm.item() for name, norm in gradient_norms(optimizer).items()} == {"qformer": 5.0, "decoder": 2.0}
