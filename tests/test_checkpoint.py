from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.inference import load_detector
from models.detector import build_detector
from tests.micro import micro_config, random_batch
from tests.unprivileged import as_nobody
from utils.checkpoint import (
    CHECKPOINT_KEYS,
    checkpoint_digest,
    differing_frozen,
    frozen_identity,
    load_checkpoint,
    load_trainable,
    save_checkpoint,
    trainable_state,
)
from utils.errors import UserError


def make_checkpoint(config, seed=0):
    torch.manual_seed(seed)
    model = build_detector(config)
    state = dict.fromkeys(CHECKPOINT_KEYS, 0)
    state |= {"model_state_dict": trainable_state(model), "model_config": config.to_dict(),
              "frozen_identity": frozen_identity(model)}
    return model, state


def test_a_checkpoint_restores_the_outputs_and_holds_no_frozen_tensor(tmp_path):
    config = micro_config()
    model, state = make_checkpoint(config)
    path = tmp_path / "model.pth"
    save_checkpoint(state, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]
    assert not any(name.startswith("llm.") for name in state["model_state_dict"])
    restored, restored_config, _ = load_detector(path, torch.device("cpu"))
    assert restored_config == config and not restored.training
    batch = random_batch(config)
    assert torch.equal(restored(batch)["pred_pts"], model.eval()(batch)["pred_pts"])


def broken(kind, tmp_path):
    path = tmp_path / "model.pth"
    if kind == "missing":
        return path
    save_checkpoint(make_checkpoint(micro_config())[1] if kind != "foreign" else {"weights": 1}, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    return path


@pytest.mark.parametrize("kind", ["missing", "truncated", "foreign"])
def test_a_file_that_is_no_checkpoint_is_one_line_that_names_it(kind, tmp_path):
    path = broken(kind, tmp_path)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, names",
    [
        ({"num_instances": 6}, "map_queries.embeddings has shape"),
        ({"llm_path": "none"}, "frozen weights"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(change, names):
    _, state = make_checkpoint(micro_config())
    other = build_detector(micro_config(**change))
    before = trainable_state(other)
    with pytest.raises(UserError, match=names):
        load_trainable(other, state, "model.pth")
    after = trainable_state(other)
    assert all(torch.equal(before[name], after[name]) for name in before), "nothing half-loaded"


def test_missing_and_unexpected_tensors_are_named():
    model, state = make_checkpoint(micro_config())
    state["model_state_dict"]["decoder.extra"] = state["model_state_dict"].pop("decoder.references")
    with pytest.raises(UserError, match=r"missing \['decoder.references'\], 1 unexpected \['decoder.extra'\]"):
        load_trainable(model, state, "model.pth")


def test_a_checkpoint_that_others_may_not_read_is_one_line(open_folder):
    _, state = make_checkpoint(micro_config())
    (open_folder / "closed").mkdir()
    for path in (open_folder / "model.pth", open_folder / "closed" / "model.pth"):
        save_checkpoint(state, path)
    (open_folder / "model.pth").chmod(0o600)
    (open_folder / "closed").chmod(0o700)
    with as_nobody():
        with pytest.raises(UserError, match=r"model\.pth: cannot be read \(Permission denied\); make it readable"):
            load_checkpoint(open_folder / "model.pth")
        with pytest.raises(UserError, match=r"closed/model\.pth: no such checkpoint"):
            load_checkpoint(open_folder / "closed" / "model.pth")


def test_a_checkpoint_of_an_earlier_version_is_one_line(tmp_path):
    _, state = make_checkpoint(micro_config())
    save_checkpoint({**state, "frozen_identity": "0f" * 32}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="model.pth: a checkpoint of an earlier version"):
        load_checkpoint(tmp_path / "model.pth")
    torch.save(state, tmp_path / "model.pth")  # without a digest
    with pytest.raises(UserError, match="model.pth: a checkpoint of an earlier version"):
        load_checkpoint(tmp_path / "model.pth")
    del state["scheduler_state_dict"]
    save_checkpoint(state, tmp_path / "model.pth")
    with pytest.raises(UserError, match="model.pth: a checkpoint of an earlier version"):
        load_checkpoint(tmp_path / "model.pth")


def test_weights_that_are_not_finite_are_named():
    model, state = make_checkpoint(micro_config())
    state["model_state_dict"]["decoder.references"][0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="model.pth: decoder.references holds values that are not finite"):
        load_trainable(model, state, "model.pth")


def test_the_identity_notices_one_changed_frozen_tensor():
    model, _ = make_checkpoint(micro_config())
    before = frozen_identity(model)
    with torch.no_grad():
        model.llm.model.norm.weight[3] += 0.5
    assert differing_frozen(before, frozen_identity(model)) == ["llm.model.norm.weight"]


def test_settings_of_another_version_are_one_line(tmp_path):
    _, state = make_checkpoint(micro_config())
    state["model_config"]["num_wheels"] = 4
    save_checkpoint(state, tmp_path / "model.pth")
    with pytest.raises(UserError, match="model.pth: model settings of another version .*num_wheels"):
        load_detector(tmp_path / "model.pth", torch.device("cpu"))


def digest_of(value: object) -> str:
    return checkpoint_digest({"value": value})


@pytest.mark.parametrize(
    "one, other",
    [
        (torch.zeros(6), torch.zeros(2, 3)),
        (torch.zeros(6), torch.zeros(6, dtype=torch.int32)),
        (torch.zeros(6, dtype=torch.float16), torch.zeros(6).bfloat16()),
        (torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([2.0, 1.0]).bfloat16()),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.tensor(1.0), 1.0),
        (1, 1.0),
        (1, True),
        (0, None),
        ("1", 1),
        ("a", b"a"),
        ([1, 2], (1, 2)),
        ([1, [2]], [[1], 2]),
        (["a", "b"], ["ab"]),
        ({}, []),
        ({1: "a"}, {"1": "a"}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, OrderedDict(a=1)),
    ],
)
def test_the_digest_tells_contents_apart(one, other):
    assert digest_of(one) != digest_of(other)


def test_the_digest_is_of_the_content_not_of_how_it_lies_in_memory():
    matrix = torch.arange(12.0).reshape(3, 4)
    assert digest_of(matrix.t()) == digest_of(matrix.t().contiguous())
    assert digest_of(matrix[1:]) == digest_of(matrix[1:].clone())
    assert digest_of(torch.tensor([float("nan")])) == digest_of(torch.tensor([float("nan")]))
    assert digest_of(torch.zeros(0, 3)) != digest_of(torch.zeros(3, 0))


def test_a_checkpoint_may_be_saved_again_with_its_digest(tmp_path):
    state = make_checkpoint(micro_config())[1]
    save_checkpoint(state, tmp_path / "model.pth")
    assert "digest" not in state, "the caller's dict is left as it was"
    loaded = load_checkpoint(tmp_path / "model.pth")
    assert loaded["digest"] == checkpoint_digest(state) == checkpoint_digest(loaded)
    save_checkpoint({**loaded, "epoch": 3}, tmp_path / "model.pth")
    again = load_checkpoint(tmp_path / "model.pth")
    assert again["epoch"] == 3 and again["digest"] != loaded["digest"]


@pytest.mark.parametrize("value", [np.float64(0.5), Path("x"), np.zeros(2), torch.float32, {1, 2}])
def test_what_could_not_be_loaded_again_is_not_saved(value, tmp_path):
    state = make_checkpoint(micro_config())[1] | {"args": {"rates": [1.0, value]}}
    with pytest.raises(TypeError, match=rf"checkpoint\['args'\]\['rates'\]\[1\] is a {type(value).__name__}"):
        save_checkpoint(state, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())
