"""How a long document is cut into segments that the encoder can read.

Pure arithmetic on lengths, shared by what plans batches, what builds them and what counts them.

    tokens of the document    0 1 2 3 4 5 6 7 8 9
    segment 0                 0 1 2 3 4 5            content = 6
    segment 1                         4 5 6 7 8 9    overlap = 2: 4 and 5 are context only

Segment s holds tokens [s·stride, s·stride + content), stride = content - overlap; of these the
first `overlap` were kept by segment s - 1, so that each token is kept exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from plant_dist.config.schema import TokensConfig
from plant_dist.data.csr import Int64
from plant_dist.data.tokens import SpecialTokens, special_tokens
from plant_dist.errors import ConfigError


@dataclass(frozen=True)
class Segmentation:
    """Segment length and overlap in tokens, and the special tokens around each segment.

    Raises:
        ConfigError: special tokens and overlap leave no room for new tokens.
    """

    segment_tokens: int
    overlap_tokens: int
    special: SpecialTokens

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ConfigError(
                f"tokens.segment_tokens ({self.segment_tokens}) leaves no room for new tokens "
                f"beside {self.special.count} special ones and tokens.overlap_tokens "
                f"({self.overlap_tokens}); raise it or lower the overlap"
            )

    @classmethod
    def of(cls, tokens: TokensConfig, tokenizer: PreTrainedTokenizerBase) -> Segmentation:
        """Return the segmentation that a configuration and a tokenizer ask for."""
        return cls(tokens.segment_tokens, tokens.overlap_tokens, special_tokens(tokenizer))

    @property
    def content(self) -> int:
        """Document tokens in a full segment."""
        return self.segment_tokens - self.special.count

    @property
    def stride(self) -> int:
        """Tokens from the start of a segment to the start of the next."""
        return self.content - self.overlap_tokens

    def counts(self, lengths: Int64) -> Int64:
        """Return (N,) segments of documents of (N,) tokens; at least one each."""
        # Negative floor division rounds up: a part of a stride needs a segment too.
        beyond = np.maximum(lengths - self.content, 0)
        return 1 + -(-beyond // self.stride)

    def widths(self, lengths: Int64) -> Int64:
        """Return (N,) the longest segment of each document, special tokens included."""
        # Only the last segment is ever short, so the first says how wide a document is.
        return np.minimum(lengths, self.content) + self.special.count

    def padded(self, lengths: Int64) -> Int64:
        """Return (N,) the size of each document's (S, T) array; never falls with the length."""
        return self.counts(lengths) * self.widths(lengths)
