"""The same training on one process and on several."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.gt_cache import GTCache, write_gt_cache
from tests.micro_trainer import make_trainer, on_ranks
from tests.training_runs import assert_same_up_to_rounding
from training.sampler import GlobalBatches
from utils.distributed import Ranks


def train(ranks: Ranks, folder: Path, world: Path, caches: dict, flags: tuple[str, ...]) -> None:
    """A whole run without dropout, whose masks would depend on the split."""
    # At a larger rate Adam makes visible steps of gradients that are nothing but rounding.
    make_trainer(folder, world, caches, "--lr-decoder", "1e-4", *flags, dropout=0.0, ranks=ranks).run()


def validate(ranks: Ranks, folder: Path, world: Path, caches: dict) -> None:
    """A validation of the untrained model, one sample a batch; writes the tokens that the ranks have predicted."""
    trainer = make_trainer(folder, world, caches, "--batch-size", "1", ranks=ranks)
    known = trainer.val_loader.dataset.cache.sample_tokens
    tokens = [known[index] for batch in trainer.val_loader.batch_sampler for index in batch]
    trainer.validate()
    everyone = ranks.gather(tokens)
    if ranks.is_main:
        (folder / "tokens.json").write_text(json.dumps(everyone))


def final(folder: Path) -> dict:
    return torch.load(folder / "final_model.pth", weights_only=True)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory, caches):
    """The caches, but the samples that rank 1 of 2 takes with batch 2 in the first epoch have no ground truth."""
    cache = GTCache.open(caches["train"])
    of_rank_1 = {index for batch in GlobalBatches(len(cache), 2, 1, 0, Ranks(1, 2)) for index in batch}
    assert len(of_rank_1) == 4
    none = {"labels": np.zeros(0, np.int64), "pts_m": []}
    changed = [replace(record, **none) if i in of_rank_1 else record for i, record in enumerate(cache)]
    counts = [len(record.labels) for record in changed]
    assert counts.count(0) == 4 and len(set(counts)) > 2, "and the others have different numbers"
    path = tmp_path_factory.mktemp("uneven") / "train.safetensors"
    write_gt_cache(path, changed, cache.meta)
    return {**caches, "train": path}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, synthetic_world, uneven):
    """The folders of one process's runs by batch size."""
    folders = {size: tmp_path_factory.mktemp(f"alone{size}") for size in (4, 8)}
    for size, folder in folders.items():
        train(Ranks(), folder, synthetic_world, uneven, ("--batch-size", str(size)))
    return folders


@pytest.mark.parametrize("count, flags, global_batch", [
    (2, ("--batch-size", "2"), 4),
    (1, ("--batch-size", "2", "--accumulation-steps", "2"), 4),
    (2, ("--batch-size", "2", "--accumulation-steps", "2"), 8),
    (2, ("--batch-size", "2", "--shard-llm"), 4),
])
def test_any_split_of_a_global_batch_gives_the_same_run(
    count, flags, global_batch, alone, tmp_path, synthetic_world, uneven
):
    """Up to the rounding of sums, which are taken in another order."""
    whole = alone[global_batch]
    on_ranks(count, train, tmp_path, synthetic_world, uneven, flags)
    assert_same_up_to_rounding(*(final(folder)["model_state_dict"] for folder in (tmp_path, whole)))
    for ours, theirs in zip(records(tmp_path), records(whole), strict=True):
        assert ours["step"] == theirs["step"]
        for name in theirs:
            if name.startswith(("loss", "grad_norm")):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
        assert ours.get("result") == theirs.get("result")


def test_validation_on_three_ranks_counts_each_sample_once_and_equals_one_process(tmp_path, synthetic_world, caches):
    (tmp_path / "one").mkdir()
    validate(Ranks(), tmp_path / "one", synthetic_world, caches)
    on_ranks(3, validate, tmp_path / "three", synthetic_world, caches)
    every = json.loads((tmp_path / "three" / "tokens.json").read_text())
    assert [len(tokens) for tokens in every] == [2, 1, 1]
    assert sorted(sum(every, [])) == sorted(GTCache.open(caches["val"]).sample_tokens)
    results = [record["result"] for folder in ("one", "three") for record in records(tmp_path / folder)]
    assert len(results) == 2 and results[0] == results[1] and results[0]["details"]["divider"]["num_gt"] > 0
