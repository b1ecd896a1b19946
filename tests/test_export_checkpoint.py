import sys

import pytest
import torch

import models.flags
from evaluation.inference import load_detector
from tests.micro import micro_config, random_batch
from tools import export_checkpoint
from train_map_detection import main as train
from utils.checkpoint import load_checkpoint, weights_alone
from utils.errors import UserError


def call(main, monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, flags)])
    main()


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_weights_alone_say_the_same_and_cannot_be_trained_on(
    decay, tmp_path, synthetic_world, caches, monkeypatch, capsys
):
    run, out = tmp_path / "run", tmp_path / "weights" / "model.pth"
    monkeypatch.setattr(models.flags, "PRESETS", {"tiny": micro_config()})
    flags = ["--preset", "tiny", "--dataroot", synthetic_world, "--epochs", 1, "--num-workers", 0,
             "--warmup-steps", 1, "--ema-decay", decay]  # fmt: skip
    call(train, monkeypatch, *flags, "--output-dir", run)
    call(export_checkpoint.main, monkeypatch, "--checkpoint", run / "final_model.pth", "--output", out)
    whole, alone = load_checkpoint(run / "final_model.pth"), load_checkpoint(out)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{out}: ")
    assert out.stat().st_size < 0.6 * (run / "final_model.pth").stat().st_size
    assert str(synthetic_world) in str(whole["args"]) and str(tmp_path) in str(whole["args"])
    assert str(synthetic_world) not in str(alone) and str(tmp_path) not in str(alone)
    assert alone["args"]["epochs"] == 1 and alone["train_digest"] == whole["train_digest"]
    batch = random_batch(micro_config())
    outputs = [load_detector(path, torch.device("cpu"))[0](batch) for path in (run / "final_model.pth", out)]
    for name in ("pred_logits", "pred_pts"):
        assert torch.equal(outputs[0][name], outputs[1][name])
    whole["model_config"]["llm_path"] = whole["args"]["llm_path"] = str(tmp_path)  # a folder of weights
    whole["model_config"]["qformer_pretrained"] = "Salesforce/blip2-opt-2.7b"  # of the hub, for everyone
    named = weights_alone(whole)
    assert named["model_config"]["llm_path"] == named["args"]["llm_path"] == tmp_path.name
    assert named["model_config"]["qformer_pretrained"] == "Salesforce/blip2-opt-2.7b"
    raw = all(torch.equal(alone["model_state_dict"][name], value) for name, value in whole["model_state_dict"].items())
    assert raw == (decay == 0.0)

    (run / "given.pth").write_bytes(out.read_bytes())
    with pytest.raises(UserError, match=r"given\.pth: holds weights alone"):
        call(train, monkeypatch, *flags, "--resume", run / "given.pth")
    with pytest.raises(UserError, match="is what is read; give the output a file of its own"):
        call(export_checkpoint.main, monkeypatch, "--checkpoint", out, "--output", out)
