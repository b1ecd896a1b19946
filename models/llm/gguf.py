"""Weights out of a GGUF file, llama.cpp's format, through the optional package `gguf`."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.llm.quantization import is_quantized
from models.llm.weights import owner_of, without_layers
from utils.errors import UserError

_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")  # Hugging Face's names of them
_HEAD = "output.weight"


def gguf_weights(
    model: PreTrainedModel, path: Path, device: torch.device, dtype: torch.dtype, left_out: range = range(0)
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every weight of the model, dequantised one at a time into dtype on the device.

    Weights that will be quantised anew stay in float32. left_out: numbers of layers that the file has and the model
    does not. Raises UserError, before anything is read, for another architecture and for a tensor that is missing, has
    another shape, or has no place in the model.
    """
    import gguf

    config = model.config
    if config.model_type not in _ARCHITECTURES:
        raise UserError(f"{path}: architecture {config.model_type}, of GGUF files expected "
                        f"{', '.join(_ARCHITECTURES)}; take the model in safetensors")
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    wanted = {
        names.get_name(f"model.{name}", try_suffixes=(".weight", ".bias")): (name, parameter.shape)
        for name, parameter in model.named_parameters()
    }
    stored = {tensor.name: tensor for tensor in reader.tensors}
    missing = sorted(wanted.keys() - stored.keys())
    unexpected = sorted(without_layers(stored.keys() - wanted.keys() - {_HEAD}, wanted, left_out))
    if "rope_freqs.weight" in unexpected:
        raise UserError(f"{path}: has RoPE frequencies of its own, as Llama from 3.1 on, which are not read from GGUF; "
                        "take the model in safetensors")
    if missing or unexpected:
        raise UserError(f"{path}: {len(missing)} tensors missing {missing[:3]}, {len(unexpected)} without a place in a "
                        f"{config.model_type} model {unexpected[:3]}; take another file of this model")
    for gguf_name, (_, shape) in wanted.items():
        found = tuple(stored[gguf_name].shape.tolist()[::-1])  # GGUF counts the fastest dimension first
        if found != tuple(shape):
            raise UserError(f"{path}: {gguf_name} is {found}, expected {tuple(shape)}; take another file of this model")
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    permuted = heads if architecture == "llama" else {}
    # The largest first, while the memory for the others is still free.
    largest_first = sorted(wanted, key=lambda name: stored[name].n_elements, reverse=True)
    return (
        (wanted[gguf_name][0],
         _read(path, stored[gguf_name], next((permuted[key] for key in permuted if key in gguf_name), None))
         .to(device, torch.float32 if is_quantized(owner_of(model, wanted[gguf_name][0])) else dtype))
        for gguf_name in largest_first
    )


def _read(path: Path, tensor, num_heads: int | None) -> Tensor:
    """Float32 tensor of a GGUF entry; num_heads where llama.cpp interleaved the halves that RoPE turns together."""
    import gguf
    import numpy as np

    # Read, not mapped: the reader's mapping would keep every byte of the file in this process' memory.
    raw = np.fromfile(path, tensor.data.dtype, tensor.data.size, offset=tensor.data_offset)
    values = torch.from_numpy(gguf.dequantize(raw.reshape(tensor.data.shape), tensor.tensor_type))
    if num_heads is None:
        return values
    pairs = values.unflatten(0, (num_heads, -1, 2))  # [heads, dim/2, 2, ...]
    return pairs.transpose(1, 2).flatten(0, 2)
