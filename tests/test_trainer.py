"""training/trainer.py: what reaches the samples, the gradients, the averages and the choice of the best model."""

import json
import math

import pytest
import torch

from models.alarms import COLLAPSED
from tests.micro_trainer import make_trainer, on_ranks
from training import trainer as trainer_module
from training.interruption import Interrupted
from utils.checkpoint import load_checkpoint, trainable_state
from utils.distributed import Ranks


def test_each_epoch_has_its_own_order_and_its_own_augmentation(tmp_path, synthetic_world, caches):
    trainer = make_trainer(tmp_path, synthetic_world, caches, "--epochs", "3")
    dataset, step, seen = trainer.train_loader.dataset, trainer.train_step, []

    def remember(batches, number):
        seen.append([(index, dataset.augmentation_of(index)) for index in batches[0]["indices"]])
        return step(batches, number)

    trainer.train_step = remember
    trainer.train_step.over_ranks = step.over_ranks
    for _ in range(3):
        trainer.train_epoch()
    epochs = [seen[number] + seen[number + 1] for number in (0, 2, 4)]
    assert len({tuple(index for index, _ in epoch) for epoch in epochs}) == 3
    mirrored = {tuple(augmentation.mirror for _, augmentation in sorted(epoch, key=lambda each: each[0]))
                for epoch in epochs}  # fmt: skip
    assert len(mirrored) == 3


def test_gradients_are_clipped_in_their_own_scale(tmp_path, synthetic_world, caches):
    norms = {}
    for precision in ("fp32", "fp16"):
        flags = ("--precision", precision, "--grad-clip", "0.01")
        trainer = make_trainer(tmp_path / precision, synthetic_world, caches, *flags, dropout=0.0)
        if precision == "fp16":
            trainer.train_step.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        taken = []

        def look(*_, trainer=trainer, taken=taken):
            gradients = [p.grad for p in trainer.train_step.parameters if p.grad is not None]
            taken.append(torch.nn.utils.get_total_norm(gradients).item())

        trainer.optimizer.register_step_pre_hook(look)
        norms[precision] = trainer.train_step([next(iter(trainer.train_loader))], 0).gradient_norm
        assert taken == [pytest.approx(0.01, rel=1e-3)]
    assert norms["fp32"] > 1 and norms["fp16"] == pytest.approx(norms["fp32"], rel=0.1)


def test_a_validation_warns_of_collapse(tmp_path, synthetic_world, caches, monkeypatch, capsys):
    trainer = make_trainer(tmp_path, synthetic_world, caches)
    spreads = {"scene_std": COLLAPSED - 1e-4, "ground_std": COLLAPSED, "query_std": math.nan}
    score_split = trainer_module.score_split

    def measured_so(*given):
        result, measured = score_split(*given)
        return result, measured | spreads

    monkeypatch.setattr(trainer_module, "score_split", measured_so)
    trainer.validate()
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "the scene tokens are nearly the same for every scene" in warnings[0]


def test_validation_sees_the_average_and_training_goes_on_from_its_own_weights(
    tmp_path, synthetic_world, caches, monkeypatch
):
    trainer = make_trainer(tmp_path, synthetic_world, caches, "--ema-decay", "0.9")
    trainer.train_epoch()
    own, average, validated = trainable_state(trainer.model), trainer.ema.state_dict(), []

    def interrupted(model, *_):
        validated.append(trainable_state(model))
        raise Interrupted(15)

    monkeypatch.setattr(trainer_module, "score_split", interrupted)
    with pytest.raises(Interrupted):
        trainer.validate()
    (seen,) = validated
    assert all(torch.equal(seen[name], average[name]) for name in average)
    after = trainable_state(trainer.model)
    assert all(torch.equal(after[name], own[name]) for name in own)
    assert any(not torch.equal(own[name], average[name]) for name in own)


def test_the_best_model_is_that_of_the_best_score_also_after_a_resume(tmp_path, synthetic_world, caches):
    first = make_trainer(tmp_path, synthetic_world, caches, "--epochs", "3")
    scores = iter([0.3, 0.5, 0.4])
    first.validate = lambda: next(scores)
    first.run()
    assert load_checkpoint(tmp_path / "best_model.pth")["epoch"] == 2 and first.best_map == 0.5
    path = tmp_path / "checkpoint_epoch_2.pth"
    second = make_trainer(tmp_path, synthetic_world, caches, "--epochs", "3", resume=path)
    second.validate = lambda: 0.4
    second.run()
    assert load_checkpoint(tmp_path / "best_model.pth")["epoch"] == 2 and second.best_map == 0.5


def test_a_best_score_on_other_ground_truth_is_forgotten(tmp_path, synthetic_world, caches):
    first = make_trainer(tmp_path, synthetic_world, caches)
    first.validate = lambda: 0.5
    first.run()
    others = {**caches, "val": caches["train"]}
    path = tmp_path / "checkpoint_epoch_2.pth"
    assert make_trainer(tmp_path, synthetic_world, caches, resume=path).best_map == 0.5
    assert make_trainer(tmp_path, synthetic_world, others, resume=path).best_map == -1.0


def test_every_second_epoch_and_the_last_are_validated(tmp_path, synthetic_world, caches):
    make_trainer(tmp_path, synthetic_world, caches, "--epochs", "3", "--eval-interval", "2").run()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records if record["kind"] == "val"] == [2, 3]


def drift(ranks: Ranks, folder, world, caches) -> None:
    """One rank's weight differs from the other's; neither may save."""
    trainer = make_trainer(folder, world, caches, "--batch-size", "2", ranks=ranks)
    trainer.train_epoch()
    trainer.save("checkpoint_epoch_1.pth")
    if ranks.rank == 1:
        with torch.no_grad():
            trainer.model.map_queries.embeddings[0, 0] += 1e-3
    with pytest.raises(RuntimeError, match="map_queries.embeddings is not the same on rank 1 as on rank 0"):
        trainer.save("best_model.pth")


def test_ranks_that_have_drifted_apart_save_nothing(tmp_path, synthetic_world, caches):
    on_ranks(2, drift, tmp_path, synthetic_world, caches)
    assert (tmp_path / "checkpoint_epoch_1.pth").exists() and not (tmp_path / "best_model.pth").exists()
