"""Bytes of all tensors alive during a piece of work, from their sizes: exact without a device when they are fake."""

import weakref
from collections.abc import Iterable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """While active, follows every storage that an operator returns until it is freed.

    A tensor's storage counts once however many views it has. What a kernel uses inside and gives back before it
    returns is not seen, nor is what an allocator loses by rounding.
    """

    def __init__(self, existing: Iterable[Tensor] = ()):
        super().__init__()
        self.live = 0  # bytes
        self.peak = 0
        self._followed: set[int] = set()
        for tensor in existing:
            self._follow(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._followed:
            self._followed.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, nbytes: int) -> None:
        self._followed.discard(key)
        self.live -= nbytes
