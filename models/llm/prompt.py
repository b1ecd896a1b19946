"""The text in front of the scene: tokenised once for each wording, padded to one length."""

# B batch, L text tokens

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from utils.errors import UserError


class Prompt:
    """A text, the same for all samples, that a context of the sample's own may follow.

    tokenize: text to token ids. pad_id: fills up shorter texts; masked, so that any token of the vocabulary will do.
    max_tokens: what the LLM's context leaves for text. Raises UserError when the text is longer or no token at all.
    """

    def __init__(self, text: str, tokenize: Callable[[str], list[int]], pad_id: int, max_tokens: int):
        self.text = text
        self.tokenize = tokenize
        self.pad_id = pad_id
        self.max_tokens = max_tokens
        self._tokens: dict[tuple[str, torch.device], Tensor] = {}
        self.tokens("", torch.device("cpu"))

    def tokens(self, context: str, device: torch.device) -> Tensor:
        """Token ids int64 [L] of the text and a context, `` for none."""
        key = (context, device)
        if key not in self._tokens:
            ids = self.tokenize(f"{self.text} {context}" if context else self.text)
            if self.text.strip() and not ids:
                raise UserError(f"--prompt {self.text[:40]!r}: the LLM's tokenizer makes no token of it; "
                                "take the tokenizer's files and the weights of the same model")
            if len(ids) > self.max_tokens:
                raise UserError(f"--prompt {self.text[:40]!r}... with context {context[:40]!r}: {len(ids)} tokens, the "
                                f"LLM's context leaves {self.max_tokens} beside scene and map queries; shorten it")
            self._tokens[key] = torch.tensor(ids, dtype=torch.long, device=device)
        return self._tokens[key]

    def batch(self, contexts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Token ids int64 [B, L], padded at the end, and their validity bool [B, L], of B contexts."""
        tokens = [self.tokens(context, device) for context in contexts]
        ids = pad_sequence(tokens, batch_first=True, padding_value=self.pad_id)  # [B, L]
        valid = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in tokens], batch_first=True)  # [B, L]
        return ids, valid
