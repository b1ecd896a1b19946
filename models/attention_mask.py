"""Who may look at whom inside the LLM.

Token order: L text, S scene, then for each instance one instance query and P point queries.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


def map_attention_mask(
    text_valid: Tensor, num_scene: int, num_instances: int, num_points: int, causal_prefix: bool = True
) -> Tensor:
    """Structured mask of the LLM's input, bool [B, 1, T, T], True = the row's token may attend to the column's.

    T = L + num_scene + num_instances * (1 + num_points). Text and scene are causal among themselves, or, without
    causal_prefix, all see each other. Every map query sees the whole prefix; an instance query also sees all instance
    queries and its own points; a point query sees the tokens of its own instance. Nobody sees text padding, except
    that a padding token sees itself (a row that may attend to nothing would be NaN).

    text_valid: bool [B, L], False marks padding.
    """
    batch, num_text = text_valid.shape
    device = text_valid.device
    num_prefix = num_text + num_scene
    num_queries = num_instances * (1 + num_points)
    total = num_prefix + num_queries

    position = torch.arange(total, device=device)
    is_prefix = position < num_prefix
    instance = (position - num_prefix).div(1 + num_points, rounding_mode="floor")  # of a query; prefix: unused
    is_instance_query = ~is_prefix & ((position - num_prefix) % (1 + num_points) == 0)

    causal = position[:, None] >= position[None, :]
    query_row, query_column = ~is_prefix[:, None], ~is_prefix[None, :]
    same_instance = instance[:, None] == instance[None, :]
    both_instance_queries = is_instance_query[:, None] & is_instance_query[None, :]
    allowed = is_prefix[None, :] & (query_row | causal) if causal_prefix else is_prefix.expand(total, total)
    allowed = allowed | (query_row & query_column & (same_instance | both_instance_queries))  # [T, T]

    column_valid = torch.ones(batch, total, dtype=torch.bool, device=device)
    column_valid[:, :num_text] = text_valid
    itself = torch.eye(total, dtype=torch.bool, device=device)
    return ((allowed & column_valid[:, None, :]) | itself)[:, None]  # [B, 1, T, T]


def map_position_ids(text_valid: Tensor, num_scene: int, num_instances: int, num_points: int) -> Tensor:
    """Position ids int64 [B, T]: text without its padding, then one and the same for all that follows.

    Scene tokens and map queries are sets whose members say themselves where they lie; no token is further from a
    query than another because of the order they are written in.
    """
    text = (text_valid.long().cumsum(1) - 1).clamp(min=0)  # [B, L]
    start = text_valid.long().sum(1, keepdim=True)  # [B, 1]
    rest = start.expand(-1, num_scene + num_instances * (1 + num_points))
    return torch.cat([text, rest], dim=1)


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask [B, 1, T, T] as what is added to the attention's scores.

    Eager attention adds it; SDPA would turn a bool mask into this one anew in each layer and keep them all, and on a
    GPU also copy one whose rows do not begin at multiples of 8 elements.
    """
    total = mask.shape[-1]
    added = torch.zeros(*mask.shape[:-1], -(-total // 8) * 8, dtype=dtype, device=mask.device)[..., :total]
    return added.masked_fill_(~mask, torch.finfo(dtype).min)


def block_mask(mask: Tensor) -> BlockMask:
    """A bool mask [B, 1, T, T] as flex attention takes it."""

    def may_attend(sample: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return mask[sample, 0, row, column]

    batch, _, total, _ = mask.shape
    return create_block_mask(may_attend, batch, None, total, total, device=mask.device)
