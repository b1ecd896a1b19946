import weakref
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModel

import models.llm.sharding
from models.criterion import MapCriterion
from models.detector import build_detector
from models.llm.frozen import FrozenLLM, build_llm
from models.llm.sharding import check_sharding, join_forward_passes, shard_llm
from tests.made_llm import made_llm, save_llm
from tests.micro import micro_config, random_batch
from tests.micro_trainer import on_ranks
from utils.checkpoint import trainable_state
from utils.errors import UserError
from utils.optim import build_optimizer

CPU = torch.device("cpu")
NUM_LAYERS = 4
RATES = {"qformer": 1e-3, "queries": 1e-3, "decoder": 1e-3, "lora": 1e-2}
# Instances of each sample, of two batches a rank: sizes differ, and one batch is without any.
COUNTS = {0: ((3, 0), (2, 4)), 1: ((0,), (1,))}
NUM_VALIDATED = {0: 3, 1: 1}
VARIANTS = {
    "plain": {},
    "lora": {"lora_rank": 3},
    "lora and checkpointing": {"lora_rank": 3, "llm_checkpointing": True},
}
FAMILIES = ("llama, tied", "mistral", "qwen3", "gpt_neox")


def sharding_config(**changes):
    """The micro model with more layers, some of whose matrices have an odd number of rows."""
    config = micro_config(**changes)
    return replace(config, random_llm=replace(config.random_llm, num_layers=NUM_LAYERS, mlp_size=33))


def shard_in_turns(llm, rank):
    """How many layers still lie whole before each is sharded. The second rank begins when the first has finished."""
    whole = [[weakref.ref(p) for p in layer.parameters() if not p.requires_grad] for layer in llm.layers]
    alive = []
    fully_shard = models.llm.sharding.fully_shard

    def counting(module, **settings):
        alive.append(sum(any(ref() is not None for ref in layer) for layer in whole))
        return fully_shard(module, **settings)

    models.llm.sharding.fully_shard = counting
    if rank == 1:
        dist.recv(torch.zeros(1), src=0)
    shard_llm(llm, CPU)
    if rank == 0:
        dist.send(torch.zeros(1), dst=1)
    models.llm.sharding.fully_shard = fully_shard
    return alive


def watch_layers(llm):
    """A list to which each layer adds, at each of its passes, how many layers are whole just then."""
    counts = []

    def count(*_):
        frozen = [[p for p in layer.parameters() if not p.requires_grad] for layer in llm.layers]
        counts.append(sum(not any(isinstance(p, DTensor) for p in layer) for layer in frozen))

    for layer in llm.layers:
        layer.mlp.register_forward_hook(count)
        layer.mlp.register_full_backward_hook(count)
    return counts


def train_two_steps(rank, config, sharded):
    """Losses, outputs, gradients and weights of two steps under DDP, and what the LLM looked like on the way."""
    torch.manual_seed(0)
    model = build_detector(config, CPU, llm_device=CPU).train()
    before = {name: p.detach().clone() for name, p in model.llm.named_parameters() if not p.requires_grad}
    record = {"losses": [], "outputs": [], "grads": []}
    if sharded:
        record["alive"] = shard_in_turns(model.llm, rank)
        record["whole"] = watch_layers(model.llm)
        cut = [p for p in model.llm.parameters() if isinstance(p, DTensor)]
        record["bytes"] = sum(p.to_local().untyped_storage().nbytes() for p in cut)
        record["bytes_wanted"] = sum(-(-p.shape[0] // 2) * p.numel() // p.shape[0] * p.element_size() for p in cut)
    ddp = DistributedDataParallel(model, init_sync=False, broadcast_buffers=False)
    optimizer = build_optimizer(model, RATES, weight_decay=0.01)
    criterion = MapCriterion(config.num_points, config.num_classes, config.pc_range)
    for step in range(2):
        optimizer.zero_grad()
        for part in range(2):  # two parts of one step, of which the first exchanges no gradient
            ddp.require_backward_grad_sync = part == 1
            batch = random_batch(config, COUNTS[rank][part], seed=10 * rank + 2 * step + part)
            outputs = ddp(batch)
            loss = criterion.total(criterion(outputs, batch))
            loss.backward()
            record["losses"].append(loss.detach())
            record["outputs"].append(outputs["pred_pts"].detach())
        record["grads"].append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    record["state"] = trainable_state(model)
    after = {name: p for name, p in model.llm.named_parameters() if not p.requires_grad}
    record["cut"] = {name for name, p in after.items() if isinstance(p, DTensor)}
    full = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in after.items()}
    record["unchanged"] = before.keys() == full.keys() and all(torch.equal(before[name], full[name]) for name in full)
    return record


def validate_and_go_on(rank, sharded):
    """Predictions of another number of batches on each rank, after an abandoned step; then a step's gradients."""
    config = sharding_config()
    torch.manual_seed(0)
    model = build_detector(config, CPU).train()
    if sharded:
        shard_llm(model.llm, CPU)
    model(random_batch(config, (1,)))  # of which no backward pass comes
    batches = [random_batch(config, (1,) * (1 + i), seed=i) for i in range(NUM_VALIDATED[rank])]
    with torch.no_grad():
        predicted = [model.eval()(batch)["pred_logits"] for batch in batches]
    if sharded:
        join_forward_passes(model.llm, max(NUM_VALIDATED.values()) - NUM_VALIDATED[rank])
    outputs = model.train()(random_batch(config, COUNTS[rank][0]))
    (outputs["pred_logits"].square().sum() + outputs["pred_pts"].sum()).backward()
    return predicted, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def read_llm(rank, config, dtype, sharded):
    """Hidden states of an LLM by itself, the gradient of its inputs, and the types of its weights."""
    llm = build_llm(config, CPU, dtype)
    if sharded:
        shard_llm(llm, CPU)
    length = 5 + rank
    embeddings = torch.randn(2, length, llm.hidden_size, generator=torch.Generator().manual_seed(rank))
    embeddings.requires_grad_()
    states = llm(embeddings, torch.ones(1, 1, length, length, dtype=torch.bool).tril(), torch.arange(length)[None])
    states.float().square().sum().backward()
    return states.detach(), embeddings.grad, {p.dtype for p in llm.parameters()}


def work(rank, llm_folders):
    """Everything that needs two ranks, each piece with the whole LLM and with the sharded one."""
    results = {}
    for sharded in (False, True):
        for name, changes in VARIANTS.items():
            results[name, sharded] = train_two_steps(rank, sharding_config(**changes), sharded)
        results["validate", sharded] = validate_and_go_on(rank, sharded)
        for dtype in (torch.float16, torch.bfloat16):
            results[dtype, sharded] = read_llm(rank, sharding_config(), dtype, sharded)
        for family, folder in llm_folders.items():
            config = micro_config(llm_path=str(folder), llm_checkpointing=True)
            results[family, sharded] = read_llm(rank, config, torch.float32, sharded)
    return results


def write_results(ranks, folder, llm_folders):
    """The results of work on this rank go to a file."""
    torch.save(work(ranks.rank, llm_folders), folder / f"{ranks.rank}.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What work returns on each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    llm_folders = {}
    for family in FAMILIES:
        llm_folders[family] = folder / family.replace(", ", "_")
        llm_folders[family].mkdir()
        save_llm(llm_folders[family], made_llm(family))
    on_ranks(2, write_results, folder, llm_folders)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same(sharded, whole):
    """Two sequences, or dicts, of tensors are the same within 1e-6."""
    if isinstance(whole, dict):
        assert sharded.keys() == whole.keys()
        sharded, whole = sharded.values(), whole.values()
    assert len(sharded) == len(whole) > 0
    for a, b in zip(sharded, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_training_steps_are_those_of_the_whole_llm(ranks, variant):
    for results in ranks:
        whole, sharded = results[variant, False], results[variant, True]
        assert_same(sharded["losses"], whole["losses"])
        assert_same(sharded["outputs"], whole["outputs"])
        for step in range(2):
            assert sharded["grads"][step].keys() == whole["state"].keys(), "everything that trains has a gradient"
            assert_same(sharded["grads"][step], whole["grads"][step])
        assert_same(sharded["state"], whole["state"])
        first = ranks[0][variant, True]["state"]
        assert all(torch.equal(weight, first[name]) for name, weight in sharded["state"].items()), "ranks apart"


@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_weights_stay_as_they_were_and_lora_stays_whole(ranks, variant):
    for results in ranks:
        record = results[variant, True]
        assert record["unchanged"] and len(record["cut"]) == 9 * NUM_LAYERS
        assert sum(".lora." in name for name in record["state"]) == (14 * NUM_LAYERS if "lora" in variant else 0)
        assert not any(isinstance(weight, DTensor) for weight in record["state"].values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_rank_holds_half_of_each_layer_and_one_whole_layer_at_a_time(ranks, variant):
    for results in ranks:
        record = results[variant, True]
        assert record["bytes"] == record["bytes_wanted"]
        assert record["alive"] == [4, 3, 2, 1, 0], "a layer that is sharded goes before the next one comes"
        assert set(record["whole"]) == {1} and len(record["whole"]) >= 4 * NUM_LAYERS * 2


def test_ranks_may_validate_different_numbers_of_batches(ranks):
    for rank, results in enumerate(ranks):
        (predicted, grads), (predicted_whole, grads_whole) = results["validate", True], results["validate", False]
        assert len(predicted) == NUM_VALIDATED[rank]
        assert_same(predicted, predicted_whole)
        assert_same(grads, grads_whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(ranks, dtype):
    for results in ranks:
        (states, grad, dtypes), (states_whole, grad_whole, _) = results[dtype, True], results[dtype, False]
        assert states.dtype == dtype and dtypes == {dtype}
        assert torch.equal(states, states_whole) and torch.equal(grad, grad_whole) and grad.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_models_read_the_same_in_shards(ranks, family):
    for results in ranks:
        assert_same(results[family, True][:2], results[family, False][:2])


@pytest.mark.parametrize(("changes", "num_ranks", "message"), [
    ({}, 1, "--shard-llm: one process .* torchrun"),
    ({"llm_path": "none"}, 2, "--shard-llm: --llm-path none"),
    ({"llm_quantization": "int8"}, 2, "--shard-llm: --llm-quantization int8"),
    ({"llm_quantization": "nf4"}, 2, "--shard-llm: --llm-quantization nf4"),
    ({"llm_attention": "flex"}, 2, "--shard-llm: .*--llm-attention flex"),
    ({"unfreeze_llm": True}, 2, "--shard-llm: .*--unfreeze-llm"),
])
def test_what_cannot_be_sharded_is_refused(changes, num_ranks, message):
    check_sharding(micro_config(lora_rank=2), 2)
    with pytest.raises(UserError, match=message):
        check_sharding(micro_config(**changes), num_ranks)


def test_a_model_of_unknown_layers_is_refused_by_its_type():
    config = AutoConfig.for_model("ctrl", vocab_size=8, n_embd=8, dff=8, n_layer=1, n_head=1)
    llm = FrozenLLM(AutoModel.from_config(config), prompt=None)
    for act in (llm.checkpoint_layers, lambda: shard_llm(llm, CPU)):
        with pytest.raises(UserError, match="the layers of a ctrl model are unknown"):
            act()
