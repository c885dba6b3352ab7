"""Turn prompts into token ids of one length with CLIP's tokenizer, offline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

START_ID = 49406
"""`<|startoftext|>`, the first token of every text."""
END_ID = 49407
"""`<|endoftext|>`, the last token; CLIP's text encoder takes the sentence's features at its place."""
CONTEXT_LENGTH = 77
"""Most tokens that CLIP's text encoder takes, start and end included."""

_FILES_DIR = Path(__file__).parent


class PromptTokenizer:
    """Turn prompts into `input_ids` with CLIP's byte-pair encoding (vocab.json and merges.txt beside this file).

    A row is: start (49406), the text's tokens, end (49407), then `padding_id` up to `context_length`.

    Args:
        context_length: tokens in a row, 3 ... 77 (CRIS was first released with 17, too short for P5 and above).
        padding_id: 0 as in CLIP and CRIS, which masks words with id 0; 49407 as in the published experiments.
    Raises:
        ValueError: if `context_length` is out of range.
    """

    def __init__(self, context_length: int = CONTEXT_LENGTH, padding_id: int = 0) -> None:
        if not 3 <= context_length <= CONTEXT_LENGTH:
            raise ValueError(f"tokenizer.py: context_length must be 3 ... {CONTEXT_LENGTH}, got {context_length}")
        self.context_length = context_length
        self.padding_id = padding_id

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return token ids of S texts.

        Args:
            texts: S prompts; the empty string (P0) is allowed.
        Returns:
            (S, context_length), int64.
        Raises:
            ValueError: if `texts` is one string, is empty, or a text is too long.
        """
        import torch

        return torch.tensor(self.rows(texts), dtype=torch.int64)

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the same ids as lists of numbers, without torch: S rows of `context_length` token ids."""
        if isinstance(texts, str) or len(texts) == 0:
            raise ValueError(f"tokenizer.py: expected a list of at least one prompt, got {texts!r}")
        rows = [self.encode(text) for text in texts]
        return [row + [self.padding_id] * (self.context_length - len(row)) for row in rows]

    def encode(self, text: str) -> list[int]:
        """Return token ids of one text with start and end, without padding.

        Raises:
            ValueError: if there are more than `context_length` ids, or the text contains CLIP's start or end token.
        """
        token_ids = list(_token_ids(text))
        if {START_ID, END_ID} & set(token_ids[1:-1]):
            raise ValueError(
                f"tokenizer.py: prompt must be plain words, got CLIP's own start or end token in it: {text!r}"
            )
        if len(token_ids) > self.context_length:
            raise ValueError(
                f"tokenizer.py: prompt has {len(token_ids)} tokens with start and end, "
                f"at most {self.context_length} fit: {text!r}; "
                f"shorten the prompt or raise context_length (up to {CONTEXT_LENGTH})"
            )
        return token_ids


@lru_cache(maxsize=65536)
def _token_ids(text: str) -> tuple[int, ...]:
    """Return token ids with start and end; they are remembered, since a data set has few different prompts."""
    return tuple(_clip_tokenizer()(text, truncation=False, verbose=False)["input_ids"])


@cache
def _clip_tokenizer() -> Any:
    """Load transformers' tokenizer with the shipped files; imported here because that takes a second."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=str(_FILES_DIR / "vocab.json"), merges=str(_FILES_DIR / "merges.txt"))
