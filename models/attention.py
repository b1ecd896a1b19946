"""Multi-head attention of the parts that train."""

# N batch, Tq and Tk tokens, H heads, D width

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention whose positions are added to queries and keys, not to values."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        # No bias on the keys: it changes all of a query's logits alike, so Adam would only walk it along by rounding.
        self.key_value = nn.ModuleList([nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)])
        self.output = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query [N, Tq, D], key and value [N, Tk, D] -> [N, Tq, D]; mask [N, 1, Tq, Tk]: True = may attend."""
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [N, H, T, D/H]
            for x in (self.query(query), self.key_value[0](key), self.key_value[1](value))
        )
        return self.output(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
