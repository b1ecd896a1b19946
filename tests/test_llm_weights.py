import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, LlamaConfig, LlamaModel

from models.llm.files import find_llm
from models.llm.frozen import build_llm
from models.llm.weights import empty_model, fill
from tests.made_llm import FAMILIES, made_llm, save_bin, save_llm, save_tokenizer
from tests.micro import micro_config
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CLEAR_REFS = Path("/proc/self/clear_refs")


def load(folder, layers=0, **kwargs):
    return build_llm(micro_config(llm_path=str(folder), prompt="map of a car", llm_layers=layers), **kwargs)


def run(llm, ids, window=None):
    length = ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    if window:
        mask &= ~torch.ones_like(mask).tril(-window)
    mask = mask.expand(len(ids), 1, -1, -1)
    return llm(llm.model.get_input_embeddings()(ids), mask, torch.arange(length).expand(len(ids), -1))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_causal_mask_hidden_states_are_hugging_faces_to_the_last_bit(family, form, tmp_path):
    folder = save_llm(tmp_path, made_llm(family), form)
    reference = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    llm = load(folder)
    assert type(llm.model) is type(reference) and not hasattr(llm.model, "lm_head")
    assert llm.hidden_size == 32
    if family != "qwen2":  # transformers reads words as characters there
        assert llm.text.tokens("", torch.device("cpu")).tolist() == [2, 0, 0, 3]
    ids = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(0))
    window = FAMILIES[family].get("sliding_window")
    assert torch.equal(run(llm, ids, window), reference(ids).last_hidden_state)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_layers_alone_give_hugging_faces_states_after_them(family, tmp_path):
    folder = save_llm(tmp_path, made_llm(family, num_hidden_layers=3))
    reference = AutoModel.from_pretrained(folder, dtype=torch.float32, num_hidden_layers=2).eval()
    llm = load(folder, layers=2)
    assert len(llm.layers) == 2
    ids = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(0))
    window = FAMILIES[family].get("sliding_window")
    found = run(llm, ids, window)
    assert torch.equal(found, reference(ids).last_hidden_state)
    assert not torch.allclose(found, run(load(folder), ids, window), atol=1e-3)


def test_only_tensors_of_the_layers_left_out_may_be_left_over(tmp_path):
    extra = {"model.layers.1.mlp.gate.weight": torch.ones(3)}
    folder = one_file(tmp_path, lambda tensors: tensors.update(extra))
    with pytest.raises(UserError, match="1 tensors have no place in a qwen2 model, the first: model.layers.1.mlp.gate"):
        load(folder, layers=1)
    with pytest.raises(UserError, match=f"^--llm-layers 3: {folder} has 2; give no more, or 0 for all$"):
        load(folder, layers=3)


def test_a_sliding_window_does_not_narrow_our_mask(tmp_path):
    folder = save_llm(tmp_path, made_llm("mistral"))
    reference = AutoModel.from_pretrained(folder, dtype=torch.float32, sliding_window=None).eval()
    ids = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(load(folder), ids), reference(ids).last_hidden_state)
    windowed = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert not torch.allclose(windowed(ids).last_hidden_state, reference(ids).last_hidden_state, atol=1e-3)


def test_a_headless_checkpoint_in_one_file_is_loaded_too(tmp_path):
    model = made_llm().model
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        llm = load(path)
        assert all(torch.equal(a, b) for a, b in zip(llm.model.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_arrive_in_half_precision_and_rope_stays_exact(form, dtype, tmp_path):
    model = made_llm()
    llm = load(save_llm(tmp_path, model, form), dtype=dtype)
    expected = dict(model.model.named_parameters())
    for name, parameter in llm.model.named_parameters():
        assert torch.equal(parameter, expected[name].to(dtype)) and not parameter.requires_grad, name
    assert llm.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(llm.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_changing_the_files_later_does_not_change_the_model(tmp_path):
    folder = save_llm(tmp_path, made_llm(), "bin")
    llm = load(folder)
    before = [parameter.clone() for parameter in llm.parameters()]
    for file in folder.glob("*.bin"):
        file.write_bytes(bytes(file.stat().st_size))
    assert all(torch.equal(a, b) for a, b in zip(before, llm.parameters(), strict=True))


def refused(folder, match):
    with pytest.raises(UserError, match=match) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def one_file(folder, change):
    """Weights in one safetensors file after a change of the dict of tensors."""
    model = made_llm("qwen2")
    model.config.save_pretrained(folder)
    save_tokenizer(folder)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"),
         "1 tensors are missing, the first: model.layers.1.mlp.up_proj.weight"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(33)}),
         r"model.norm.weight is \(33,\) torch.float32, expected \(32,\)"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
         r"model.norm.weight is \(32,\) torch.int8, expected \(32,\), floating point"),
        (lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.bias": torch.ones(48)}),
         "1 tensors have no place in a qwen2 model, the first: model.layers.0.mlp.up_proj.bias"),
        (lambda tensors: tensors.update({"vision_tower.weight": torch.ones(3)}), "no place .*vision_tower.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, match, tmp_path):
    refused(one_file(tmp_path, change), match)


def test_heads_and_old_tables_of_rope_are_left_out(tmp_path):
    extra = {"lm_head.weight": torch.ones(64, 32), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    llm = load(one_file(tmp_path, lambda tensors: tensors.update(extra)))
    assert not any("lm_head" in name or "inv_freq" in name for name, _ in llm.named_parameters())


def test_settings_of_another_size_are_refused_without_reading_weights(tmp_path, monkeypatch):
    folder = save_llm(tmp_path, made_llm())
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    monkeypatch.setattr("models.llm.weights._read", None)
    refused(folder, "9 tensors are missing, the first: model.layers.2.self_attn.q_proj.weight")


def test_missing_and_damaged_shards_are_named(tmp_path):
    folder = save_llm(tmp_path, made_llm(), "bin")
    shard = folder / "pytorch_model-00002-of-00002.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    refused(folder, "pytorch_model-00002-of-00002.bin: not a whole weights file")
    shard.unlink()
    refused(folder, "1 of the 2 weight files needed are missing, pytorch_model-00002-of-00002.bin")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    folder = save_llm(tmp_path, made_llm(), "bin")
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model-00001-of-00002.bin")
    refused(folder, "not a whole weights file")
    assert not (tmp_path / "ran").exists()


def test_a_model_whose_tables_cannot_be_computed_is_refused():
    model = empty_model("x", LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8))
    model.embed_tokens.register_buffer("scale", torch.ones(1, device="meta"), persistent=False)
    weights = iter([("norm.weight", torch.ones(16))])
    with pytest.raises(UserError, match="'llama': embed_tokens computes scale in a way unknown here"):
        fill(model, weights, torch.device("cpu"))
    assert next(weights), "nothing was read"


MEASURE = """
import sys, torch
from models.llm.frozen import build_llm
from tests.micro import micro_config

def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

for folder in sys.argv[1:]:
    config = micro_config(llm_path=folder, prompt="map")
    build_llm(config, torch.device("meta"))  # what is imported late does not count
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # starts the peak anew
    llm = build_llm(config, torch.device("cpu"), torch.bfloat16)
    llm.token_scale
    size = sum(parameter.nbytes for parameter in llm.parameters())
    print((resident("VmHWM") - before) / size)
    del llm
"""


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="peak memory is measured through Linux' /proc")
def test_peak_memory_is_below_1_3_times_the_half_precision_model(tmp_path):
    """Also where the files are float32, and with every byte of them that is mapped counted."""
    config = LlamaConfig(vocab_size=16000, hidden_size=640, intermediate_size=1760, num_hidden_layers=8,
                         num_attention_heads=10)
    model = LlamaModel(config)
    folders = []
    for form, dtype in (("safetensors", torch.float32), ("bin", torch.float32), ("bin", torch.float16)):
        model.to(dtype)
        folder = tmp_path / f"{form}_{dtype}"
        if form == "bin":
            config.save_pretrained(folder)
            save_bin(model.state_dict(), folder)
        else:
            model.save_pretrained(folder, max_shard_size="100MB")
        save_tokenizer(folder)
        folders.append(str(folder))
    # With a fixed threshold, the C library gives back what was freed, and one folder's memory does not serve the next.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    env["MALLOC_MMAP_THRESHOLD_"] = "65536"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *folders], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ratios = [float(line) for line in done.stdout.split()]
    assert len(ratios) == len(folders) and all(0.9 < ratio < 1.3 for ratio in ratios), ratios


def test_only_what_the_index_says_is_opened(tmp_path):
    """A shard that holds the head alone may be missing: nothing of it is needed."""
    folder = save_llm(tmp_path, made_llm())
    file_of = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shard = folder / file_of["lm_head.weight"]
    tensors = load_file(shard)
    if len(tensors) > 1:
        pytest.skip("the head shares its shard")
    shard.unlink()
    assert find_llm(str(folder)).config.model_type == "llama" and load(folder).hidden_size == 32
