import hashlib
from dataclasses import replace
from itertools import product

import pytest
import torch
from transformers import LlamaForCausalLM

from models.attention_mask import map_attention_mask, map_position_ids
from models.config import RandomLLMConfig
from models.criterion import MapCriterion
from models.detector import build_detector
from models.llm.frozen import FrozenLLM, build_llm, check_unfreezing
from models.llm.prompt import Prompt
from models.llm.random_llama import build_random_llama, random_weights
from models.llm.weights import empty_model, fill
from tests.compiler import needs_compiler
from tests.made_llm import made_llm
from tests.micro import micro_config, random_batch
from utils.errors import UserError
from utils.optim import build_optimizer

CONFIG = RandomLLMConfig(hidden_size=16, num_layers=2, num_heads=2, mlp_size=32, vocab_size=64)


def frozen(model, attention="sdpa"):
    model.set_attn_implementation(attention)
    return FrozenLLM(model, Prompt("map", lambda text: [1], 0, 10))


def causal(length, batch=1):
    mask = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, 1, -1, -1)
    return mask, torch.arange(length).expand(batch, -1)


def test_random_llama_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = build_random_llama(CONFIG)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1)), "building it must not move the global random state"
    second = build_llm(micro_config(llm_path="random", random_llm=CONFIG)).model
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))
    assert first.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(16**-0.5, rel=0.1)


@pytest.mark.parametrize("drawn_on_cpu", [10**9, 0])
def test_the_first_layers_of_a_random_llama_alone(drawn_on_cpu, monkeypatch):
    monkeypatch.setattr("models.llm.random_llama._DRAWN_ON_CPU", drawn_on_cpu)
    whole, first = (build_llm(micro_config(llm_layers=count)) for count in (0, 1))
    held = dict(whole.model.named_parameters())
    assert len(first.layers) == 1 and len(whole.layers) == 2
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, held[name]), name


def test_a_large_random_llama_is_drawn_in_half_precision_where_it_lives(monkeypatch):
    monkeypatch.setattr("models.llm.random_llama._DRAWN_ON_CPU", 0)
    model = empty_model("random", build_random_llama(CONFIG).config)
    device = torch.device("cpu")
    for _ in range(2):
        weights = dict(random_weights(model, CONFIG, device, torch.bfloat16))
        up = weights["layers.0.mlp.up_proj.weight"]
        assert up.dtype == torch.bfloat16 and up.float().std().item() == pytest.approx(16**-0.5, rel=0.1)
        assert (weights["norm.weight"] == 1).all()
    fill(model, weights.items(), device)
    assert torch.equal(model.rotary_emb.inv_freq, build_random_llama(CONFIG).rotary_emb.inv_freq)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_the_7b_shape_has_no_memory_on_the_meta_device():
    with torch.device("meta"):
        llm = build_llm(replace(micro_config(), llm_path="random", random_llm=RandomLLMConfig()))
    assert sum(parameter.numel() for parameter in llm.parameters()) == 6_607_343_616
    assert all(parameter.is_meta for parameter in llm.parameters()) and llm.token_scale == 4096**-0.5


def test_with_a_causal_mask_hidden_states_equal_those_of_the_causal_model():
    llama = build_random_llama(CONFIG)
    reference = LlamaForCausalLM(llama.config).eval()
    reference.model.load_state_dict(llama.state_dict())
    ids = torch.randint(0, 64, (2, 9))
    expected = reference(ids, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(frozen(llama)(llama.embed_tokens(ids), *causal(9, 2)), expected)


def tokens_of(num_text, num_padding, num_scene, num_instances, num_points):
    """Kind and number of each token of the LLM's input, and of the instance's it belongs to."""
    yield from (("text", i) for i in range(num_text))
    yield from (("padding", i) for i in range(num_padding))
    yield from (("scene", i) for i in range(num_scene))
    for instance in range(num_instances):
        yield ("instance", instance)
        yield from (("point", instance) for _ in range(num_points))


def may_see(row, column, row_index, column_index):
    """The mask in words; row and column as tokens_of gives them."""
    (reader, reader_of), (read, read_of) = row, column
    if row_index == column_index:
        return True
    if read == "padding":
        return False
    if reader in ("text", "padding", "scene"):
        return read in ("text", "scene") and column_index < row_index
    if read in ("text", "scene"):
        return True
    return reader_of == read_of or (reader == "instance" and read == "instance")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_token_changes_exactly_the_outputs_that_may_see_it(attention, num_layers):
    llm = frozen(build_random_llama(replace(CONFIG, num_layers=num_layers)), attention)
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    mask, position_ids = map_attention_mask(valid, 2, 3, 2), map_position_ids(valid, 2, 3, 2)
    total = mask.shape[-1]
    torch.manual_seed(0)
    embeddings = torch.randn(16) + 0.5 * torch.randn(2, total, 16)  # alike enough to attend to one another
    before = llm(embeddings, mask, position_ids)
    pairs = set()
    for sample, num_text in enumerate((4, 2)):
        tokens = list(tokens_of(num_text, 4 - num_text, 2, 3, 2))
        sees = torch.tensor([[may_see(tokens[r], tokens[c], r, c) for c in range(total)] for r in range(total)])
        reach = torch.linalg.matrix_power(sees.double(), num_layers) > 0  # each layer passes on what the last one saw
        for token in range(total):
            changed = embeddings.clone()
            changed[sample, token] += torch.randn(16)
            moved = (llm(changed, mask, position_ids) - before).abs().amax(-1) > 1e-6
            assert torch.equal(moved[sample], reach[:, token]), (sample, token)
            assert not moved[1 - sample].any(), "another sample of the batch"
            pairs |= {(tokens[r][0], tokens[token][0], tokens[r][1] == tokens[token][1]) for r in range(total)}
    queries = {pair for pair in pairs if {pair[0], pair[1]} <= {"instance", "point"}}
    assert len(queries) == 8, "of the same and of another instance"
    kinds = ("text", "padding", "scene", "instance", "point")
    assert {pair[:2] for pair in pairs} == set(product(kinds, kinds))


@needs_compiler
def test_flex_attention_reads_the_same():
    """Without gradient: on a CPU it has no backward pass."""
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    mask, position_ids = map_attention_mask(valid, 2, 3, 2), map_position_ids(valid, 2, 3, 2)
    torch.manual_seed(0)
    embeddings = torch.randn(2, mask.shape[-1], 16)
    with torch.no_grad():
        expected, found = (
            frozen(build_random_llama(CONFIG), attention)(embeddings, mask, position_ids)
            for attention in ("sdpa", "flex_attention")
        )
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flex_attention_passes_the_same_gradient_on(checkpointing):
    shape = RandomLLMConfig(hidden_size=64, num_layers=2, num_heads=2, mlp_size=96, vocab_size=64)
    config = micro_config(llm_checkpointing=checkpointing, random_llm=shape)
    valid = torch.ones(2, 4, dtype=torch.bool, device="cuda")
    mask, position_ids = map_attention_mask(valid, 200, 3, 20), map_position_ids(valid, 200, 3, 20)
    start = torch.randn(2, mask.shape[-1], 64, device="cuda")
    weight = torch.randn_like(start)  # of a sum: that of squares hardly changes behind the last norm
    gradients = []
    for attention in ("sdpa", "flex"):
        llm = build_llm(replace(config, llm_attention=attention), torch.device("cuda"))
        embeddings = start.clone().requires_grad_()
        (llm(embeddings, mask, position_ids) * weight).sum().backward()
        gradients.append(embeddings.grad)
    scale = gradients[0].abs().max().item()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-2, atol=1e-2 * scale)


def test_flex_attention_is_for_gpus_alone():
    assert build_llm(micro_config(llm_attention="flex")).model.config._attn_implementation == "sdpa"
    for changes in ({"llm_attention": "flash"}, {"llm_attention": "flex", "unfreeze_llm": True},
                    {"llm_attention": "flex", "llm_path": "none"}):  # fmt: skip
        with pytest.raises(ValueError, match="llm_attention"):
            micro_config(**changes)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sample_is_the_same_alone_and_beside_a_longer_prompt(attention):
    config = micro_config()
    torch.manual_seed(0)
    model = build_detector(config).eval()
    model.llm.model.set_attn_implementation(attention)
    batch = random_batch(config, (1, 1)) | {"context": ["Boston", "Singapore, drives on the left, night, rain"]}
    together = model(batch)
    for sample in range(2):
        alone = model({key: value[sample : sample + 1] for key, value in batch.items()})
        for name in ("pred_logits", "pred_pts"):
            assert torch.allclose(alone[name], together[name][sample : sample + 1], atol=1e-5), name
    without = model({key: value for key, value in batch.items() if key != "context"})
    assert not torch.allclose(without["pred_logits"], together["pred_logits"], atol=1e-4), "the context is read"


def test_frozen_means_frozen_but_the_gradient_passes():
    llm = frozen(made_llm().model)  # with dropout in its settings
    llm.train()
    assert not llm.training and not llm.model.training
    assert not any(p.requires_grad for p in llm.parameters())
    embeddings = torch.randn(1, 5, 32, requires_grad=True)
    states = llm(embeddings, *causal(5))
    assert torch.equal(states, llm(embeddings, *causal(5))), "no dropout"
    states.sum().backward()
    assert embeddings.grad.abs().sum() > 0


def digest(module):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())).hexdigest()


def test_training_leaves_the_bytes_of_the_llm_alone():
    config = micro_config()
    model = build_detector(config).train()
    before, trained = digest(model.llm), digest(model.qformer)
    optimizer = build_optimizer(model, dict.fromkeys(("qformer", "queries", "decoder"), 1e-2), weight_decay=0.1)
    criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
    batch = random_batch(config)
    for _ in range(3):
        optimizer.zero_grad()
        criterion.total(criterion(model(batch), batch)).backward()
        optimizer.step()
    assert digest(model.llm) == before and digest(model.qformer) != trained
    assert all(parameter.grad is None for parameter in model.llm.parameters())
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not any(id(parameter) in held for parameter in model.llm.parameters()), "no optimizer state"


def gradients(llm, embeddings):
    """Outputs, input gradient, and what the forward pass keeps for it: storage address -> bytes, weights left out."""
    saved = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in llm.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or another could get its address
        return tensor

    embeddings = embeddings.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states = llm(embeddings, *causal(embeddings.shape[1], len(embeddings)))
    states.square().sum().backward()
    return states.detach(), embeddings.grad, {address: size for address, (size, _) in saved.items()}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_checkpointing_changes_memory_and_nothing_else(family):
    torch.manual_seed(0)
    embeddings = torch.randn(2, 60, 32)
    plain = gradients(frozen(made_llm(family, num_hidden_layers=6).base_model), embeddings)
    llm = frozen(made_llm(family, num_hidden_layers=6).base_model)
    llm.checkpoint_layers()
    checkpointed = gradients(llm.train(), embeddings)
    assert torch.equal(plain[0], checkpointed[0]) and torch.equal(plain[1], checkpointed[1])
    kept, kept_plain = sum(checkpointed[2].values()), sum(plain[2].values())
    one_state = embeddings.nbytes
    assert kept < 0.3 * kept_plain
    assert kept < (6 + 4) * one_state + 2 * 60 * 60 * 4 * 2, "a state for each layer, the mask and RoPE's angles"


def test_checkpointing_is_a_setting():
    torch.manual_seed(0)
    embeddings = torch.randn(1, 9, 16)
    states = [build_llm(micro_config(llm_checkpointing=flag))(embeddings, *causal(9)) for flag in (False, True)]
    kept = [gradients(build_llm(micro_config(llm_checkpointing=flag)), embeddings)[2] for flag in (False, True)]
    assert torch.equal(*states) and sum(kept[1].values()) < sum(kept[0].values())


def test_a_frozen_layer_does_not_keep_its_input():
    """A weight's gradient needs the layer's input, the input's gradient does not."""
    llm = frozen(build_random_llama(CONFIG))
    inputs = {}
    up = llm.model.layers[0].mlp.up_proj
    up.register_forward_hook(lambda module, args, output: inputs.update(up=args[0]))
    saved = gradients(llm, torch.randn(1, 7, 16))[2]
    assert inputs["up"].untyped_storage().data_ptr() not in saved
    up.weight.requires_grad_()
    saved = gradients(llm, torch.randn(1, 7, 16))[2]
    assert inputs["up"].untyped_storage().data_ptr() in saved, "the test would notice"


def test_the_mask_is_kept_once_not_once_a_layer():
    llm = frozen(build_random_llama(replace(CONFIG, num_layers=5)))
    kept = [size for size in gradients(llm, torch.randn(1, 50, 16))[2].values() if size == 50 * 50 * 4]
    assert len(kept) <= 1


def test_a_half_precision_model_feeds_a_full_precision_decoder():
    """Vicuna is published in float16 and transformers loads it so; without autocast the decoder is float32."""
    model = build_detector(micro_config()).eval()
    model.llm.to(torch.bfloat16)
    outputs = model(random_batch(micro_config()))
    assert outputs["pred_pts"].dtype == torch.float32 and torch.isfinite(outputs["pred_pts"]).all()


def test_unfreezing_says_what_memory_it_takes_unless_confirmed():
    config = micro_config(unfreeze_llm=True, random_llm=RandomLLMConfig())
    with pytest.raises(UserError, match=r"6.61 G parameters of random takes 105.7 GB .*13.2; .*--confirm-unfreeze-llm"):
        check_unfreezing(config, confirmed=False)
    check_unfreezing(config, confirmed=True)
    check_unfreezing(replace(config, unfreeze_llm=False), confirmed=False)
    llm = build_llm(micro_config(unfreeze_llm=True), dtype=torch.bfloat16)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in llm.parameters())


@pytest.mark.parametrize("change", [
    {"llm_quantization": "int4"}, {"lora_rank": -1}, {"lora_alpha": 0.0}, {"lora_alpha": float("inf")},
    {"unfreeze_llm": True, "lora_rank": 4}, {"llm_path": "none", "lora_rank": 4}, {"llm_path": "none", "llm_layers": 1},
    {"llm_path": "none", "prompt_context": True}, {"llm_path": "none", "without": ("causal_prefix",)},
    {"llm_layers": -1},
])
def test_settings_that_cannot_be_meant_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        micro_config(**change)
