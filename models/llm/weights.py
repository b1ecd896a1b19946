"""The weights of a language model: built without memory, then filled tensor by tensor where they belong."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from models.llm.quantization import is_quantized, quantized_weight
from models.tensor_files import CheckpointSource, fetch_files, map_tensors, tensor_index
from utils.errors import UserError, one_line

_LAYER_NUMBER = re.compile(r"\.(\d+)\.")
# What a checkpoint may hold beside the model that gives hidden states: heads, and tables that are computed anew.
_NOT_NEEDED = re.compile(r"^(lm_head|embed_out|score)\.|rotary_emb\.inv_freq$")


def empty_model(name: str, config: PreTrainedConfig, attention: str = "sdpa") -> PreTrainedModel:
    """The model without a head on the meta device.

    name: what the user gave, for messages. attention: Hugging Face's name of how it attends.
    Raises UserError when it cannot be driven by embeddings, a mask and position ids.
    """
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config, attn_implementation=attention)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{name}: {config.model_type} cannot be built ({one_line(error)}); "
                        "expected a decoder-only language model such as llama, mistral, qwen2 or qwen3") from error
    return model


def checkpoint_weights(
    model: PreTrainedModel, source: CheckpointSource, device: torch.device, dtype: torch.dtype,
    left_out: range = range(0),
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every weight of the model, read from safetensors or .bin straight into dtype on the device.

    Weights that will be quantised keep the precision they are stored in, so that what becomes of them does not depend
    on dtype. left_out: numbers of layers that the checkpoint has and the model does not. Raises UserError, before
    anything is read, when a tensor is missing, has another shape, is not floating point, or is one that the model has
    no place for.
    """
    file_of = tensor_index(source)
    wanted = dict(model.named_parameters())
    stored_name = _stored_names(model, source, wanted, file_of, left_out)
    paths = fetch_files(source, {stored: file_of[stored] for stored in stored_name.values()})
    path_of = {name: paths[file_of[stored]] for name, stored in stored_name.items()}
    num_bytes = {}
    for path in paths.values():
        names = [name for name in wanted if path_of[name] == path]
        held = map_tensors(path, [stored_name[name] for name in names])
        _require_names(source, [stored_name[name] for name in names], held)
        for name in names:
            tensor = held[stored_name[name]]
            if tensor.shape != wanted[name].shape or not tensor.is_floating_point():
                raise UserError(
                    f"{path}: {stored_name[name]} is {tuple(tensor.shape)} {tensor.dtype}, expected "
                    f"{tuple(wanted[name].shape)}, floating point; take config.json and weights of one model"
                )
            num_bytes[name] = tensor.nbytes
    dtypes = {name: None if is_quantized(owner_of(model, name)) else dtype for name in wanted}
    return _read(stored_name, path_of, num_bytes, device, dtypes)


def fill(model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """Give an empty model its weights, by name, and its computed tables; quantised layers quantise theirs.

    Raises UserError for a model that computes tables in a way unknown here.
    """
    for name, module in list(model.named_modules()):
        # Tables such as RoPE's frequencies are in no checkpoint; their module computes them when it is made.
        tables = [leaf for leaf, table in module.named_buffers(recurse=False) if table.is_meta]
        if not tables:
            continue
        try:
            computed = dict(type(module)(config=model.config).named_buffers(recurse=False))
        except TypeError as error:
            raise UserError(f"model_type {model.config.model_type!r}: {name} computes {tables[0]} in a way unknown "
                            "here; take a llama, mistral, qwen2 or qwen3 model") from error
        for leaf in tables:
            setattr(module, leaf, computed[leaf].to(device))
    for name, tensor in weights:
        module, leaf = owner_of(model, name), name.rpartition(".")[2]
        if leaf == "weight" and is_quantized(module):
            module.weight = quantized_weight(module, tensor, device)
        else:
            setattr(module, leaf, nn.Parameter(tensor.to(device), requires_grad=False))


def owner_of(model: nn.Module, name: str) -> nn.Module:
    """The module that holds the parameter of this name."""
    return model.get_submodule(name.rpartition(".")[0])


def without_layers(unexpected: Iterable[str], expected: Iterable[str], left_out: range) -> list[str]:
    """The unexpected names but those of layers left out: expected for an earlier layer, as `model.layers.0.` is."""
    of_layers = {_LAYER_NUMBER.sub(".0.", name, count=1) for name in expected}

    def is_left_out(name: str) -> bool:
        number = _LAYER_NUMBER.search(name)
        return bool(number) and int(number[1]) in left_out and _LAYER_NUMBER.sub(".0.", name, count=1) in of_layers

    return [name for name in unexpected if not is_left_out(name)]


def _stored_names(
    model: PreTrainedModel, source: CheckpointSource, wanted: Iterable[str], stored: Iterable[str], left_out: range
) -> dict[str, str]:
    """Name in the model -> name in the checkpoint, which may have been saved with its head and then has a prefix."""
    prefix = f"{model.base_model_prefix}."
    if not any(name.startswith(prefix) for name in stored):
        prefix = ""
    names = {name: prefix + name for name in wanted}
    _require_names(source, names.values(), stored)
    ignored = [_NOT_NEEDED, *(re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ())]
    unexpected = sorted(
        name for name in without_layers(set(stored) - set(names.values()), names.values(), left_out)
        if not any(pattern.search(name) for pattern in ignored)
    )  # fmt: skip
    if unexpected:
        raise UserError(f"{source}: {len(unexpected)} tensors have no place in a {model.config.model_type} model, the "
                        f"first: {', '.join(unexpected[:3])}; take config.json and weights of one model")
    return names


def _require_names(source: CheckpointSource, wanted: Iterable[str], held: Iterable[str]) -> None:
    held = set(held)
    missing = [name for name in wanted if name not in held]
    if missing:
        raise UserError(f"{source}: {len(missing)} tensors are missing, the first: {', '.join(missing[:3])}; "
                        "take config.json and all weights of one model")


def _read(
    stored_name: dict[str, str], path_of: dict[str, Path], num_bytes: dict[str, int], device: torch.device,
    dtypes: dict[str, torch.dtype | None],
) -> Iterator[tuple[str, Tensor]]:
    """Largest first and a 32nd at a time.

    The bytes read of a mapped file stay in this process' memory until nothing maps it any more. So the mapping is
    dropped again and again, and the largest tensors come while the memory for the others is still free.
    """
    at_a_time = sum(num_bytes.values()) / 32
    chunk: list[str] = []
    names = sorted(num_bytes, key=num_bytes.__getitem__, reverse=True)
    for name in names:
        chunk.append(name)
        if name != names[-1] and sum(num_bytes[member] for member in chunk) < at_a_time:
            continue
        for path, members in groupby(sorted(chunk, key=path_of.__getitem__), key=path_of.__getitem__):
            mapped = map_tensors(path, [stored_name[member] for member in chunk if path_of[member] == path])
            for member in members:
                tensor = mapped.pop(stored_name[member])
                yield member, tensor.to(device, dtypes[member] or tensor.dtype, copy=True)
                del tensor
            del mapped
        chunk = []
