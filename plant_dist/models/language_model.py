"""The language model around an AWD-LSTM: which tokens it predicts, how well, and its penalties.

What it learns is kept in the LSTM, which serves as an encoder afterwards. Knows nothing of labels,
batches or training.

B documents, S segments, T tokens of a segment, N tokens of the longest document, n predictions,
D width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from plant_dist.config.schema import LstmConfig
from plant_dist.models.lstm import (
    AwdLstm,
    AwdLstmConfig,
    ReadingOrder,
    locked_dropout,
    reading_order,
)

HEAD = "language_head.safetensors"
# 16 MiB of float32: larger blocks are taken from the system and given back each time.
LOGITS_PER_BLOCK = 1 << 22


class Targets(NamedTuple):
    """What is to be predicted, in reading order; N is one less than the tokens read.

    Attributes:
        ids_BN: int64, the token that follows each state.
        counted_BN: bool, True where it counts: document tokens, each once, of real documents.
    """

    ids_BN: Tensor
    counted_BN: Tensor


class Prediction(NamedTuple):
    """Sums over the predicted tokens of a batch, () float32.

    Attributes:
        nll: -ln p of the tokens, in nats.
        activation: mean squares of the states predicted from.
        slowness: mean squared changes of the state over each token predicted.
        tokens: how many are predicted.
    """

    nll: Tensor
    activation: Tensor
    slowness: Tensor
    tokens: Tensor


class LanguageModel(nn.Module):
    """Predicts each token of a document from those read before it.

    Args:
        lstm: the body.
        tied_weights: predict with the embedding table; else with a matrix of its own.
        output_dropout: locked dropout of the states predicted from.
    """

    def __init__(self, lstm: AwdLstm, tied_weights: bool, output_dropout: float) -> None:
        super().__init__()
        self.lstm, self.output_dropout = lstm, output_dropout
        self.bias = nn.Parameter(torch.zeros(lstm.config.vocab_size))
        table = lstm.embedding.weight
        self.output = None if tied_weights else nn.Parameter(table.detach().clone())

    @classmethod
    def from_config(cls, config: LstmConfig, vocabulary: int) -> LanguageModel:
        """Return a language model of noise."""
        body = AwdLstmConfig(
            vocab_size=vocabulary, hidden_size=config.width, intermediate_size=config.inner_width,
            num_hidden_layers=config.layers, backward=config.direction == "backward",
            window=config.window, embedding_dropout=config.embedding_dropout,
            input_dropout=config.input_dropout, hidden_dropout=config.hidden_dropout,
            weight_dropout=config.weight_dropout,
        )  # fmt: skip
        return cls(AwdLstm(body), config.tied_weights, config.output_dropout)

    def targets(self, input_ids_BST: Tensor, mask_BST: Tensor, counted_BST: Tensor) -> Targets:
        """Return what a batch asks for, as `forward`; the first token has nothing before it."""
        return _targets(self._order(mask_BST), input_ids_BST, counted_BST)

    def forward(self, input_ids_BST: Tensor, mask_BST: Tensor, counted_BST: Tensor) -> Prediction:
        """Read documents and measure the predictions.

        Args:
            input_ids_BST: int64. mask_BST: bool, what is read.
            counted_BST: bool, the tokens whose prediction counts, within the mask.
        """
        order = self._order(mask_BST)
        states_BND = self.lstm.states(input_ids_BST.flatten(1).gather(1, order.place_BN))
        before_BND, after_BND = states_BND[:, :-1], states_BND[:, 1:]
        dropped_BND = locked_dropout(before_BND, self.output_dropout, self.training)
        ids_BN, counted_BN = _targets(order, input_ids_BST, counted_BST)
        # Picked before anything of width V is computed: padding costs no prediction.
        predicting_nD = dropped_BND[counted_BN]
        changes_nD = (after_BND - before_BND)[counted_BN]
        return Prediction(
            nll=self._nll(predicting_nD, ids_BN[counted_BN]),
            activation=predicting_nD.float().square().mean(-1).sum(),
            slowness=changes_nD.float().square().mean(-1).sum(),
            tokens=counted_BN.sum().float(),
        )

    def _order(self, mask_BST: Tensor) -> ReadingOrder:
        return reading_order(mask_BST.flatten(1), self.lstm.config.backward)

    def _nll(self, states_nD: Tensor, ids_n: Tensor) -> Tensor:
        table = self.lstm.embedding.weight if self.output is None else self.output
        rows = max(LOGITS_PER_BLOCK // len(table), 1)
        total = torch.zeros((), device=states_nD.device)
        for states, ids in zip(torch.split(states_nD, rows), torch.split(ids_n, rows), strict=True):
            # Logits are computed again on the way back: all of them at once would not fit.
            total = total + checkpoint(
                _block_nll, states, table, self.bias, ids, use_reentrant=False
            )
        return total

    @torch.no_grad()
    def start_from_frequency(self, tokens_V: Tensor) -> None:
        """Start the biases so that a state of zeros predicts tokens by their frequency.

        Args:
            tokens_V: occurrences in training; see `unigram`.
        """
        self.bias.copy_(unigram(tokens_V))

    def save(self, folder: Path) -> None:
        """Write the LSTM as a `transformers` encoder, and the head beside it."""
        self.lstm.save_pretrained(folder)
        head = {name: part.detach().cpu() for name, part in self._head().items()}
        save_file(head, folder / HEAD)

    def load_head(self, folder: Path) -> None:
        """Take the head from a folder that `save` wrote; without one it stays as it is.

        A model that is tied takes the biases alone; an untied one starts from its table.
        """
        found = load_file(folder / HEAD) if (folder / HEAD).is_file() else {}
        with torch.no_grad():
            for name, parameter in self._head().items():
                if name in found:
                    parameter.copy_(found[name])

    def _head(self) -> dict[str, nn.Parameter]:
        return {"bias": self.bias} | ({} if self.output is None else {"output": self.output})


def unigram(tokens_V: Tensor) -> Tensor:
    """Return ln p of every token by frequency alone, one more counted of each, (V,) float32."""
    smoothed_V = tokens_V.double() + 1.0
    return (smoothed_V / smoothed_V.sum()).log().float()


def _targets(order: ReadingOrder, input_ids_BST: Tensor, counted_BST: Tensor) -> Targets:
    place_BN = order.place_BN[:, 1:]
    ids_BN = input_ids_BST.flatten(1).gather(1, place_BN)
    return Targets(ids_BN, counted_BST.flatten(1).gather(1, place_BN))


def _block_nll(states_nD: Tensor, table_VD: Tensor, bias_V: Tensor, ids_n: Tensor) -> Tensor:
    logits_nV = linear(states_nD, table_VD, bias_V)
    return cross_entropy(logits_nV.float(), ids_n, reduction="sum")
