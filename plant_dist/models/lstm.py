"""The AWD-LSTM of Merity, Keskar and Socher (2017), as a `transformers` model.

It maps `input_ids, attention_mask` to `last_hidden_state` as any encoder does, and reads a
document's segments one after another as a whole (`read`). Knows nothing of labels, nor of the
language modelling that trains it (`language_model.py`).

B documents, S segments, T tokens of a segment, N tokens of the longest document, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from plant_dist.runtime.context import has_bf16

GATES = 4  # input, forget, cell, output: torch's order
EMBEDDING_RANGE = 0.1


class AwdLstmConfig(PretrainedConfig):
    """What an AWD-LSTM is; sizes are named as other encoders name them.

    Args:
        vocab_size: token ids V.
        hidden_size: width D of embeddings and of the last layer.
        intermediate_size: width of the layers between.
        num_hidden_layers: LSTM layers.
        backward: read from a document's end to its start.
        window: tokens that gradients flow back through; None for whole documents.
        embedding_dropout: of words, wherever they occur.
        input_dropout, hidden_dropout: locked, before the first layer and between layers.
        weight_dropout: DropConnect of the hidden-to-hidden weights.
    """

    model_type = "awd_lstm"

    def __init__(
        self,
        vocab_size: int = 128,
        hidden_size: int = 32,
        intermediate_size: int = 64,
        num_hidden_layers: int = 3,
        backward: bool = False,
        window: int | None = 70,
        embedding_dropout: float = 0.1,
        input_dropout: float = 0.65,
        hidden_dropout: float = 0.2,
        weight_dropout: float = 0.5,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.backward = backward
        self.window = window
        self.embedding_dropout = embedding_dropout
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        self.weight_dropout = weight_dropout
        super().__init__(**others)


class ReadingOrder(NamedTuple):
    """The order in which an LSTM reads documents whose tokens lie in padded rows.

    Attributes:
        place_BN: int64, the column of each token read; columns of padding follow the last one.
        real_BN: bool, True where a token is read.
    """

    place_BN: Tensor
    real_BN: Tensor


def reading_order(mask_BT: Tensor, backward: bool) -> ReadingOrder:
    """Return the order of documents' tokens: real ones first, in text order or against it.

    Args:
        mask_BT: bool, True where there is a token; padding may stand anywhere.
    """
    length_B1 = mask_BT.sum(1, keepdim=True)
    # Documents without any token still have a row, which an LSTM cannot read with no columns.
    longest = max(int(length_B1.max()), 1)
    # Stable, so that tokens keep their order; False sorts before True.
    place_BN = torch.argsort(~mask_BT, dim=1, stable=True)[:, :longest]
    number_N = torch.arange(longest, device=mask_BT.device)
    real_BN = number_N < length_B1
    if backward:
        # Each document is turned in itself: padding stays last and is never read before a token.
        place_BN = place_BN.gather(1, torch.where(real_BN, length_B1 - 1 - number_N, number_N))
    return ReadingOrder(place_BN, real_BN)


class LstmLayer(nn.Module):
    """One LSTM layer with DropConnect; without it, torch's own `nn.LSTM` of one layer.

    Args:
        inputs, width: numbers per token read and given.
        weight_dropout: share of hidden-to-hidden weights that a reading drops.
        window: tokens after which the state is carried on without its gradient.
    """

    def __init__(self, inputs: int, width: int, weight_dropout: float, window: int | None) -> None:
        super().__init__()
        self.width, self.weight_dropout, self.window = width, weight_dropout, window
        self.weight_ih = nn.Parameter(torch.empty(GATES * width, inputs))
        self.weight_hh = nn.Parameter(torch.empty(GATES * width, width))
        self.bias_ih = nn.Parameter(torch.empty(GATES * width))
        self.bias_hh = nn.Parameter(torch.empty(GATES * width))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def forward(self, read_BNI: Tensor) -> Tensor:
        """Return the states after each token, (B, N, width); every row starts from zeros."""
        # Weights, not states, are dropped, once a reading: every time step has the same network.
        recurrent = dropout(self.weight_hh, self.weight_dropout, self.training)
        weights = [self.weight_ih, recurrent, self.bias_ih, self.bias_hh]
        # Only what `nn.LSTM` itself drops hangs on it, and that is nothing; cuDNN gives no
        # gradients without it, which explanations ask for in evaluation mode too.
        train = torch.is_grad_enabled()
        state = read_BNI.new_zeros(1, len(read_BNI), self.width)
        cell, states = state, []
        for window_BWI in torch.split(read_BNI, self.window or read_BNI.shape[1], dim=1):
            # Truncated back-propagation: the next window knows the state, not how it came about.
            start = (state.detach(), cell.detach())
            # What `nn.LSTM` calls; the module itself cannot be given dropped weights.
            with without_emulated_bf16(read_BNI.device.type):
                found, state, cell = torch.lstm(
                    window_BWI, start, weights, True, 1, 0.0, train, False, True
                )
            states.append(found)
        return torch.cat(states, dim=1)


@contextmanager
def without_emulated_bf16(kind: str) -> Iterator[None]:
    """Leave autocast where a CPU has no bf16: oneDNN emulates products, but not a whole LSTM."""
    if kind == "cpu" and not has_bf16(kind):
        with torch.autocast(kind, enabled=False):
            yield
    else:
        yield


def locked_dropout(values_BND: Tensor, rate: float, training: bool) -> Tensor:
    """Drop the same numbers at every time step of a document (Gal & Ghahramani 2016)."""
    if not training or rate == 0.0:
        return values_BND
    mask_B1D = dropout(torch.ones_like(values_BND[:, :1]), rate, training)
    return values_BND * mask_B1D


class AwdLstm(PreTrainedModel):
    """An LSTM language model's body: embeddings and layers, with the dropouts of AWD-LSTM."""

    config_class = AwdLstmConfig
    base_model_prefix = "lstm"
    main_input_name = "input_ids"

    def __init__(self, config: AwdLstmConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.uniform_(self.embedding.weight, -EMBEDDING_RANGE, EMBEDDING_RANGE)
        between = [config.intermediate_size] * (config.num_hidden_layers - 1)
        # As wide at the end as at the start, so that embeddings can serve as output weights.
        widths = [config.hidden_size, *between, config.hidden_size]
        self.layers = nn.ModuleList(
            LstmLayer(inputs, width, config.weight_dropout, config.window)
            for inputs, width in pairwise(widths)
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the modules as their constructors made them."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding module, as every `transformers` model does."""
        return self.embedding

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> BaseModelOutput:
        """Read documents of one segment.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), not 0 where there is a token; all tokens if None.
            others: what callers of encoders may pass besides, such as `return_dict`; unused.

        Returns: `last_hidden_state` (B, T, D), 0 in padding.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.read(input_ids[:, None], mask[:, None].bool())[:, 0]
        return BaseModelOutput(last_hidden_state=hidden)

    def read(self, input_ids_BST: Tensor, mask_BST: Tensor) -> Tensor:
        """Read documents from end to end: the state is carried from segment to segment.

        Args:
            input_ids_BST: int64. mask_BST: bool, True where there is a token.

        Returns: (B, S, T, D) hidden states in the places of their tokens, 0 in padding.
        """
        order = reading_order(mask_BST.flatten(1), self.config.backward)
        states_BND = self.states(input_ids_BST.flatten(1).gather(1, order.place_BN))
        states_BND = states_BND * order.real_BN[..., None]
        place_BND = order.place_BN[..., None].expand_as(states_BND)
        # No column comes twice, so each state lands in the place that its token was read from.
        empty = states_BND.new_zeros(*mask_BST.flatten(1).shape, states_BND.shape[-1])
        return empty.scatter(1, place_BND, states_BND).view(*mask_BST.shape, -1)

    def states(self, ids_BN: Tensor) -> Tensor:
        """Return the last layer's states (B, N, D) after tokens in reading order."""
        config = self.config
        found = locked_dropout(self._embed(ids_BN), config.input_dropout, self.training)
        for number, layer in enumerate(self.layers):
            if number:
                found = locked_dropout(found, config.hidden_dropout, self.training)
            found = layer(found)
        return found

    def _embed(self, ids_BN: Tensor) -> Tensor:
        """Return embeddings (B, N, D); a dropped word is 0 wherever it occurs in the batch."""
        vectors_BND = embedding(ids_BN, self.embedding.weight)
        rate = self.config.embedding_dropout
        if not self.training or rate == 0.0:
            return vectors_BND
        words_V1 = vectors_BND.new_ones(len(self.embedding.weight), 1)
        # Looking masks up beside the vectors spares a masked copy of the whole table.
        return vectors_BND * dropout(words_V1, rate, self.training)[ids_BN]


def register() -> None:
    """Let `AutoConfig` and `AutoModel` know the model type `awd_lstm`."""
    # May be called again in the same process.
    AutoConfig.register("awd_lstm", AwdLstmConfig, exist_ok=True)
    AutoModel.register(AwdLstmConfig, AwdLstm, exist_ok=True)
