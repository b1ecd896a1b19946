import pytest
import torch
from transformers import GPT2Config, GPT2Model

from models.criterion import MapCriterion
from models.detector import build_detector
from models.llm.frozen import build_llm
from models.llm.lora import add_lora
from models.llm.random_llama import build_random_llama
from tests.micro import micro_config, random_batch
from utils.checkpoint import frozen_identity, trainable_state
from utils.errors import UserError
from utils.optim import build_optimizer, format_learning_rates, parameter_groups

RANK = 3
TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
RATES = {"qformer": 1e-3, "queries": 1e-3, "decoder": 1e-3, "lora": 1e-2}


def causal(length):
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril(), torch.arange(length)[None]


def test_the_update_is_the_scaled_product_of_the_two_matrices():
    linear, x = torch.nn.Linear(5, 4), torch.randn(3, 5)
    before = linear(x)
    add_lora(torch.nn.Sequential(linear), rank=2, alpha=16.0)
    assert torch.equal(linear(x), before), "B starts at zero"
    lora_a, lora_b = linear.lora.lora_A, torch.nn.init.normal_(linear.lora.lora_B)
    assert torch.allclose(linear(x) - before, 16.0 / 2 * x @ lora_a.T @ lora_b.T, atol=1e-5)


def test_a_model_without_linear_layers_is_named():
    with torch.device("meta"):
        model = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=8))
    with pytest.raises(UserError, match="^--lora-rank 4: finds no linear layer in a gpt2 model; leave it out"):
        add_lora(model, rank=4, alpha=16.0)


def test_lora_starts_as_nothing_on_every_projection_and_everything_else_stays_frozen():
    plain, adapted = build_llm(micro_config()), build_llm(micro_config(lora_rank=RANK))
    embeddings = torch.randn(1, 6, 16)
    assert torch.equal(plain(embeddings, *causal(6)), adapted(embeddings, *causal(6)))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[-3] for name in trained} == TARGETS and len(trained) == 2 * len(TARGETS) * 2
    assert all(name.endswith(("lora.lora_A", "lora.lora_B")) for name in trained)
    assert not adapted.train().training


def test_lora_trains_in_its_own_group_and_is_all_that_a_checkpoint_holds_of_the_llm():
    config = micro_config(lora_rank=RANK)
    torch.manual_seed(0)
    model, plain = build_detector(config), build_detector(micro_config())
    groups = parameter_groups(model)
    assert "lora" not in parameter_groups(plain)
    assert {name for name, _ in groups["lora"]} == {n for n in trainable_state(model) if n.startswith("llm.")}
    identities = frozen_identity(model), frozen_identity(plain)
    assert identities[0].keys() == identities[1].keys(), "the base weights keep their names"
    assert all(torch.equal(identities[0][name], identities[1][name]) for name in identities[0])

    optimizer = build_optimizer(model, RATES, weight_decay=0.0)
    assert format_learning_rates(optimizer).endswith(" l=1.00e-02")
    criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
    batch = random_batch(config)
    before, losses = trainable_state(model), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = criterion.total(criterion(model(batch), batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = trainable_state(model)
    assert all(not torch.equal(before[name], after[name]) for name, _ in groups["lora"])
    assert losses[-1] < losses[0]
    assert all(torch.equal(frozen_identity(model)[name], identities[0][name]) for name in identities[0])


def test_lora_keeps_float32_weights_beside_a_half_precision_llm():
    llm = build_llm(micro_config(lora_rank=RANK, llm_checkpointing=True), dtype=torch.bfloat16)
    for name, parameter in llm.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    states = llm(torch.randn(1, 6, 16, requires_grad=True), *causal(6))
    assert states.dtype == torch.bfloat16
    states.float().sum().backward()
    grads = [parameter.grad for parameter in llm.parameters() if parameter.requires_grad]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)


def test_outputs_and_gradients_are_those_of_peft():
    peft = pytest.importorskip("peft")
    ours = build_llm(micro_config(lora_rank=RANK, lora_alpha=6.0))
    reference = build_random_llama(micro_config().random_llm).eval()
    settings = peft.LoraConfig(r=RANK, lora_alpha=6.0, target_modules=sorted(TARGETS))
    reference = peft.inject_adapter_in_model(settings, reference)
    theirs = dict(reference.named_parameters())
    pairs = []
    torch.manual_seed(0)
    for name, parameter in ours.model.named_parameters():
        if parameter.requires_grad:
            same = theirs[name.replace(".lora.lora_A", ".lora_A.default.weight")
                          .replace(".lora.lora_B", ".lora_B.default.weight")]
            with torch.no_grad():
                parameter.copy_(torch.randn_like(parameter))
                same.copy_(parameter)
            pairs.append((parameter, same))
    embeddings = torch.randn(1, 6, 16)
    states = ours(embeddings, *causal(6))
    expected = reference(inputs_embeds=embeddings, attention_mask=causal(6)[0]).last_hidden_state
    assert torch.allclose(states, expected, atol=1e-5)
    states.square().sum().backward()
    expected.square().sum().backward()
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4) for a, b in pairs) and len(pairs) == 28
