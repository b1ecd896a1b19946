import pytest
import torch

from training.ema import WeightAverage


def made_average(decay: float) -> tuple[torch.nn.Module, WeightAverage]:
    """A model of one weight, 0 when its average begins."""
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    return model, WeightAverage(model, decay)


def step_to(model: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


def test_the_average_forgets_fast_at_first_and_then_as_told():
    model, average = made_average(decay=0.9)
    expected = 0.0
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, *[None] * 77, 81 / 90, 0.9, 0.9]):
        step_to(model, value := 1.0 + step % 3)
        average.update()
        decay = decay if decay is not None else (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * value
        assert average.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_an_exchange_twice_changes_nothing():
    model, average = made_average(decay=0.5)
    step_to(model, 8.0)
    average.update()
    kept = average.state_dict()["weight"].item()
    assert kept == pytest.approx(7.2)
    average.exchange()
    assert model.weight.item() == pytest.approx(7.2) and average.state_dict()["weight"].item() == 8.0
    average.exchange()
    assert model.weight.item() == 8.0 and average.state_dict()["weight"].item() == pytest.approx(7.2)
