"""The frozen LLM in shards over the ranks, by PyTorch's FSDP2, so that several small GPUs hold what one cannot.

A rank keeps its share of each decoder layer and has the layers whole one after the other, while they compute. What
trains (LoRA) and what lies outside the layers (embeddings, last norm: 0.3 of Vicuna's 13 GB) is whole on each rank.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from models.config import ModelConfig
from models.llm.frozen import FrozenLLM
from utils.errors import UserError


def check_sharding(config: ModelConfig, num_ranks: int) -> None:
    """Raise UserError when the LLM of this config cannot be sharded over so many ranks."""
    reason = None
    if config.llm_path == "none":
        reason = "--llm-path none leaves no LLM to shard; leave out one of them"
    elif config.llm_quantization != "none":
        reason = f"--llm-quantization {config.llm_quantization} packs weights that cannot be cut; leave out one of them"
    elif config.unfreeze_llm:
        reason = "it shards frozen weights, --unfreeze-llm trains them; leave out one of them"
    elif config.llm_attention == "flex":
        reason = "its layers begin on the CPU, where --llm-attention flex is not to be had; leave out one of them"
    elif num_ranks < 2:
        reason = "one process has nobody to share the LLM with; start several with torchrun, or leave it out"
    if reason:
        raise UserError(f"--shard-llm: {reason}")


def shard_llm(llm: FrozenLLM, device: torch.device) -> None:
    """Move an LLM, layer by layer, to shards on the devices of all ranks of the default process group.

    llm: the same on every rank, best on the CPU. device: this rank's; of several GPUs the current one. From now on a
    forward pass of the LLM exchanges weights, so all ranks must make equally many (see join_forward_passes), and its
    frozen parameters are DTensors. Sharding itself exchanges nothing: the ranks of a machine may take turns.
    Raises UserError for a model whose layers are unknown here.
    """
    layers = llm.layers
    cut = {id(parameter) for layer in layers for parameter in layer.parameters() if not parameter.requires_grad}
    # Nothing here may hold on to a parameter that is cut, or every layer would stay whole on the device to the end.
    whole = {parameter for parameter in llm.parameters() if id(parameter) not in cut}
    for tensor in (*whole, *llm.buffers()):
        tensor.data = tensor.data.to(device)  # in place: an optimizer may hold it
    mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    # Around the layers, without a weight of its own: it lets each fetch the next one's weights in the backward pass.
    fully_shard(llm.model, mesh=mesh, ignored_params=whole)


@torch.no_grad()
def join_forward_passes(llm: FrozenLLM, count: int) -> None:
    """Take part in `count` forward passes without gradient for which other ranks have a batch and this one has none.

    The weights that they exchange do not depend on the batch, so one token will do.
    """
    token = torch.zeros(1, 1, llm.hidden_size, device=llm.device)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=llm.device)
    for _ in range(count):
        llm(token, mask, torch.zeros(1, 1, dtype=torch.long, device=llm.device))
