"""The planted decoder: token states in, one logit per label out.

A label attends the tokens through up to three branches (learned, planted, static), and its logit
is z_l = Σ_branch g · Σ_t A(t) · (w_l·h_t) + b_l, beside what its name and a bag of tokens say.
Labels are read in blocks, so that no B×T×L array exists; inattentive branches touch the k tokens
they keep and no others. Documents longer than the encoder are read by segments in one of three
states. Everything per label comes from the rows of a label table, which may live anywhere. Must not
know the encoder, the loss, the names of labels, or how the rows were planted.

Shapes: B documents, S segments, T tokens, D encoder width, R ranker width, L labels, K labels
considered (all L, or a shortlist's), G = B or 1 (rows shared by all documents), k tokens kept,
N branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from plant_dist.config.schema import ModelConfig
from plant_dist.errors import ConfigError, DataError
from plant_dist.labels.fetched import FetchedRows, LabelRows, Wanted
from plant_dist.models.attention import SoftmaxCarry, TopkCarry, attend_all, softmax_kept, wide
from plant_dist.models.bag import TokenBag, bag_evidence
from plant_dist.models.branches import (
    SHORT_TOKENS,
    LabelBlock,
    Reading,
    attended_values,
    candidates,
    pooled_token,
    read_segment,
    run_block,
    spread,
)
from plant_dist.models.budget import BlockBudget
from plant_dist.models.fields import label_fields
from plant_dist.models.names import NameMatcher
from plant_dist.models.owners import score_at_owners
from plant_dist.models.ranker import TokenScorer
from plant_dist.models.segments import Segment, best_probabilities, joined, last_segment, replaced
from plant_dist.models.static import StaticGains

Carry: TypeAlias = SoftmaxCarry | TopkCarry


class LabelDecoder(nn.Module):
    """Label attention, inattention, gates, boost and state, over the rows of a label table.

    Args:
        config: the `model` section.
        labels: an `nn.Module` with the fields of `label_fields` (the protocol `LabelRows`).
        scorer: the planted ranker's token side; needed by the planted branch only.
        gains: token gains; needed by the static branch only.
        matcher: of label names; needed by the named branch only.
        bag: of tokens; needed by the bag branch only.

    Raises:
        ConfigError: a branch lacks its ranker, its gains, its matcher or its bag.
    """

    labels: LabelRows

    def __init__(
        self,
        config: ModelConfig,
        labels: LabelRows,
        scorer: TokenScorer | None = None,
        gains: StaticGains | None = None,
        matcher: NameMatcher | None = None,
        bag: TokenBag | None = None,
    ) -> None:
        super().__init__()
        for branch, part in (("named", matcher), ("bag", bag)):
            if (branch in config.branches) != (part is not None):
                raise ConfigError(f"what a {branch} branch reads goes with one, and only with one")
        if "planted" in config.branches and scorer is None:
            raise ConfigError("model.branches names planted, but no ranker is given; run `rank`")
        if "static" in config.branches and gains is None:
            raise ConfigError("model.branches names static, but no gains are given; run `mig`")
        self.config = config
        self.labels = labels
        self.scorer = scorer if "planted" in config.branches else None
        self.gains = gains if "static" in config.branches else None
        every = {
            "learned": config.learned_k, "planted": config.planted_k, "static": config.static_k,
            "pooled": None, "named": 1,
        }  # fmt: skip
        # What attends, in the config's order.
        self.kept = {branch: every[branch] for branch in config.branches if branch in every}
        self.short_tokens = SHORT_TOKENS
        self.budget = BlockBudget(config, self.kept)
        self.names = matcher
        self.bag = bag
        # A table may hold more, which is not gathered in vain; widths do not matter here.
        self._read_fields = tuple(label_fields(config, 1, 1))
        if config.gates == "shared":
            # Softmax of zeros times N: every branch starts with weight 1.
            self.gate = nn.Parameter(torch.zeros(len(config.branches)))

    def forward(
        self, hidden: Tensor, input_ids: Tensor, keep: Tensor, wanted: Wanted = None
    ) -> Tensor:
        """Score labels.

        Args:
            hidden: (B, T, D), or (B, S, T, D) for documents in segments, float.
            input_ids: (B, T) or (B, S, T) int64.
            keep: as input_ids, bool: tokens that labels may attend.
            wanted: (B, K) int64 labels to score, or their rows; None scores all.
        Returns: logits (B, L), or (B, K) in the order given, float32 or wider. A document that
            keeps no token gets its labels' biases.
        """
        elsewhere = len(self.labels.own) < self.labels.count
        if elsewhere and wanted is None and not torch.is_grad_enabled():
            return score_at_owners(self._score, hidden, input_ids, keep, self.labels.counts)
        return self._score(hidden, input_ids, keep, wanted)

    def _score(
        self, hidden: Tensor, input_ids: Tensor, keep: Tensor, wanted: Wanted = None
    ) -> Tensor:
        """As `forward`; without ids and gradients, the labels that this rank owns."""
        if hidden.dim() == 3 or self.config.state == "none":
            self._draw()
            return self._whole(joined(hidden, input_ids, keep, self.names), self._fetched(wanted))
        parts = zip(hidden.unbind(1), input_ids.unbind(1), keep.unbind(1), strict=True)
        return self.stream((Segment(*part) for part in parts), wanted)

    def stream(self, segments: Iterable[Segment], wanted: Wanted = None) -> Tensor:
        """Score labels while the segments arrive; a segment may be forgotten once it is read.

        Every call starts from an empty state, so no document's state reaches another's.

        Args: segments: consecutive segments of the same documents, at least one.
        Returns: as `forward`; with state none, the same as attention_state.
        Raises:
            DataError: there is no segment, or their widths differ under logit_state.
        """
        self._draw()
        # Once a batch, for all segments and blocks.
        labels = self._fetched(wanted)
        if self.config.state == "logit_state":
            return self._stream_logits(segments, labels)
        return self._stream_attention(segments, labels)

    @torch.no_grad()
    def attention_weights(
        self, hidden: Tensor, input_ids: Tensor, keep: Tensor, label_ids_BK: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Attention of each label over the document's tokens, by branch and combined by gates.

        Arguments as `forward`. Under logit_state only a document's last segment is attended.
        Returns: branch name or `combined` → (B, K, T), T counting the tokens of all segments.
            Unkept tokens have weight exactly 0; `combined` sums the branches with their gates.
        """
        block, weights, _ = self.attended(hidden, input_ids, keep, label_ids_BK)
        # Gates are (N) for all labels, or (G, K, N); a bag attends nothing.
        gates = self.gates(block)[..., [self.config.branches.index(one) for one in weights]]
        documents, tokens = len(keep), keep.flatten(1).shape[1]
        nothing_NBKT = hidden.new_zeros(0, documents, block.rows["bias"].shape[1], tokens)
        stacked_NBKT = torch.stack(list(weights.values())) if weights else nothing_NBKT
        gates_NBK1 = gates.movedim(-1, 0)[..., None] if gates.dim() > 1 else gates.view(-1, 1, 1, 1)
        weights["combined"] = (stacked_NBKT * gates_NBK1).sum(0)
        if self.names is not None:
            # A label that has nothing but its name rests on nothing else.
            alone_GK1 = block.rows["alone"] > 0
            weights["combined"] = torch.where(alone_GK1, weights["named"], weights["combined"])
        return weights

    def attended(
        self, hidden: Tensor, input_ids: Tensor, keep: Tensor, label_ids_BK: Tensor | None
    ) -> tuple[LabelBlock, dict[str, Tensor], Reading]:
        """Read all tokens at once: branch → attention (B, K, T), for labels as one block."""
        # What earlier segments say reaches the logits as a state, not as attention.
        if hidden.dim() == 4 and self.config.state == "logit_state":
            keep = keep & last_segment(keep)[..., None]
        reading = self._read(joined(hidden, input_ids, keep, self.names))
        labels = self.labels.fetch(label_ids_BK)
        block = self._block(0, labels.count, labels)
        weights = {}
        for branch, k in self.kept.items():
            scores, positions = candidates(branch, k, reading, block)
            read = reading.segment if branch != "named" else reading.windows
            assert read is not None  # made for a named branch
            weights[branch] = spread(softmax_kept(scores), positions, read.keep.shape[1])
        if self.names is not None:
            keep_BST = keep if keep.dim() == 3 else keep[:, None]
            weights["named"] = self.names.attention(weights["named"], keep_BST)
        return block, weights, reading

    def _fetched(self, wanted: Wanted) -> FetchedRows:
        return wanted if isinstance(wanted, FetchedRows) else self.labels.fetch(wanted)

    def _draw(self) -> None:
        """Draw anew which labels are scored by their names alone: once a step, for all segments."""
        if self.names is not None and self.training:
            self.names.draws += 1

    def _whole(self, segment: Segment, labels: FetchedRows, bag_BR: Tensor | None = None) -> Tensor:
        """Attend a segment's tokens all at once, block by block of labels; see `read_whole`."""
        reading = self.read_whole(segment, bag_BR)
        recompute = self.budget.recomputes(segment, self._short(segment), labels.count)
        logits = [
            run_block(self._block_logits, recompute, reading, block)
            for block in self._blocks(segment, labels)
        ]
        return torch.cat(logits, dim=1)

    def _block_logits(self, reading: Reading, block: LabelBlock) -> Tensor:
        """Logits (B, K) of one block from one reading."""
        # A fused kernel reads a full branch fastest, but tells no softmax sum to carry on.
        full = self.kept.get("learned", 0) is None and not reading.short
        fused = "learned" if full else None
        carries = self._attend(reading, block, self._start(reading, block), skip=fused)
        evidence = {branch: carry.result() for branch, carry in carries.items()}
        if fused:
            rows = block.rows
            segment = reading.segment
            context_BKD = attend_all(rows["query"], segment.hidden, segment.keep)
            evidence[fused] = (context_BKD * rows["boost"]).sum(-1)
        return self._join(evidence, block, reading.bag)

    def _stream_attention(self, segments: Iterable[Segment], labels: FetchedRows) -> Tensor:
        """Carry softmax sums and best tokens per label from segment to segment."""
        carries: list[dict[str, Carry]] = []
        blocks: list[LabelBlock] = []
        read: list[tuple[Tensor, Tensor]] = []
        for number, segment in enumerate(segments, start=1):
            reading = self._read(segment)
            # Token ids are all that is held of a segment: a bag is of the whole document.
            read.append((segment.input_ids, segment.keep))
            # What is held grows with every segment read, so the choice is made anew for each.
            short = self._short(segment)
            recompute = self.budget.recomputes(segment, short, labels.count, number)
            if not blocks:
                # Rows are fetched once and serve all segments.
                blocks = list(self._blocks(segment, labels))
                carries = [self._start(reading, block) for block in blocks]
            carries = [
                run_block(self._attend, recompute, reading, block, carry)
                for block, carry in zip(blocks, carries, strict=True)
            ]
        if not blocks:
            raise DataError("decoder was given no segment; give each document at least one")
        bag_BR = self._bag_of(read)
        logits = [
            self._join({branch: one.result() for branch, one in carry.items()}, block, bag_BR)
            for block, carry in zip(blocks, carries, strict=True)
        ]
        return torch.cat(logits, dim=1)

    def _stream_logits(self, segments: Iterable[Segment], labels: FetchedRows) -> Tensor:
        """Carry the best labels' probabilities; the last segment of each document is scored.

        Which segment is a document's last is known only when no other comes, so each waits one
        turn. Earlier segments take no gradient: the state is detached.
        """
        waiting: Segment | None = None
        state_BK: Tensor | None = None
        read: list[tuple[Tensor, Tensor]] = []
        for segment in segments:
            read.append((segment.input_ids, segment.keep))
            if waiting is None:
                waiting = segment
                continue
            # A document moves on where it had tokens and has more; else its state stays.
            real_B = segment.keep.any(1)
            passed_B = real_B & waiting.keep.any(1)
            with torch.no_grad():
                logits_BK = self._whole(waiting, labels)
                logits_BK = logits_BK if state_BK is None else logits_BK + state_BK
                carried_BK = best_probabilities(logits_BK, self.config.state_k)
                before_BK = torch.zeros_like(carried_BK) if state_BK is None else state_BK
                state_BK = torch.where(passed_B[:, None], carried_BK, before_BK)
            waiting = replaced(waiting, segment, real_B)
        if waiting is None:
            raise DataError("decoder was given no segment; give each document at least one")
        # Attention is of the last segment, and a bag of the whole document, whatever the state.
        logits_BK = self._whole(waiting, labels, self._bag_of(read))
        return logits_BK if state_BK is None else logits_BK + state_BK

    def _bag_of(self, read: Iterable[tuple[Tensor, Tensor]]) -> Tensor | None:
        parts = (torch.cat(one, 1) for one in zip(*read, strict=True))
        bag_BR: Tensor | None = self.bag(*parts) if self.bag else None
        return bag_BR

    def _short(self, segment: Segment) -> bool:
        """Whether a segment is read densely.

        Not where best tokens are carried on: products of other sizes differ in their last bit, so
        that a token repeated in two segments would not tie with itself.
        """
        carried = self.config.state == "attention_state"
        return segment.keep.shape[1] <= self.short_tokens and not carried

    def read_whole(self, segment: Segment, bag_BR: Tensor | None = None) -> Reading:
        """Make a segment ready that holds documents from end to end, or has their bag given."""
        if self.bag is not None and bag_BR is None:
            bag_BR = self.bag(segment.input_ids, segment.keep)
        return self._read(segment)._replace(bag=bag_BR)

    def _read(self, segment: Segment, whole: bool = True) -> Reading:
        # Dropped once for all labels: blocks see the same states, and recomputing draws nothing.
        # Names and bags read none of them.
        drops = self.training and any(branch != "named" for branch in self.kept)
        hidden_BTD = dropout(wide(segment.hidden), self.config.dropout, drops)
        windows_BTD = segment.windows
        if self.names is not None and windows_BTD is None:
            windows_BTD = self.names.directions(segment.hidden, segment.keep)
        ready = segment._replace(hidden=hidden_BTD, windows=windows_BTD)
        short = whole and self._short(segment)
        return read_segment(ready, self.scorer, self.gains, short, "learned" in self.kept)

    def _start(self, reading: Reading, block: LabelBlock) -> dict[str, Carry]:
        """Carries of all branches with nothing read yet."""
        hidden_BTD = reading.segment.hidden
        like_BK = hidden_BTD.new_empty(hidden_BTD.shape[0], block.rows["bias"].shape[1])
        return {
            branch: SoftmaxCarry.start(like_BK) if k is None else TopkCarry.start(like_BK, k)
            for branch, k in self.kept.items()
        }

    def _attend(
        self,
        reading: Reading,
        block: LabelBlock,
        carries: dict[str, Carry],
        skip: str | None = None,
    ) -> dict[str, Carry]:
        """Read a segment into the carries of a block of labels (of all branches but `skip`)."""
        chosen = {
            branch: candidates(branch, k, reading, block)
            for branch, k in self.kept.items()
            if branch not in (skip, "pooled")
        }
        positions = {branch: where for branch, (_, where) in chosen.items() if branch != "named"}
        values = attended_values(block.rows["boost"], reading, positions) if positions else {}
        if self.names is not None:
            # How alike they are is the evidence itself; the boost has no part in it.
            values["named"] = self.names.excess(chosen["named"][0])
        if "pooled" in self.kept:
            scores, values["pooled"] = pooled_token(block.rows["boost"], reading.segment)
            chosen["pooled"] = scores, None
        return {
            # Static scores come as float64; a carry keeps the dtype of its values.
            branch: carries[branch].update(scores.to(values[branch].dtype), values[branch])
            for branch, (scores, _) in chosen.items()
        }

    def _join(
        self, evidence: dict[str, Tensor], block: LabelBlock, bag_BR: Tensor | None
    ) -> Tensor:
        """Logits (B, K): evidence of the branches under their gates, and the bias."""
        if bag_BR is not None:
            evidence = evidence | {"bag": bag_evidence(block.rows["bag"], bag_BR)}
        if self.names is not None:
            excess_BK = evidence["named"]
            evidence = evidence | {"named": self.names.evidence(excess_BK)}
        evidence_BKN = torch.stack([evidence[branch] for branch in self.config.branches], dim=-1)
        logits_BK = (evidence_BKN * self.gates(block)).sum(-1) + block.rows["bias"][..., 0]
        if self.names is None:
            return logits_BK
        alone_BK = block.rows["prior"][..., 0] + self.names.evidence_alone(excess_BK)
        return torch.where(block.rows["alone"][..., 0] > 0, alone_BK, logits_BK)

    def gates(self, block: LabelBlock) -> Tensor:
        """Weights of the branches, (N) or (G, K, N), adding up to N."""
        branches = len(self.config.branches)
        if self.config.gates == "sum":
            return block.rows["bias"].new_ones(branches)
        gate = self.gate if self.config.gates == "shared" else block.rows["gate"]
        # Times N, so that equal gates are the paper's plain sum.
        return wide(gate).softmax(-1) * branches

    def _blocks(self, segment: Segment, labels: FetchedRows) -> Iterator[LabelBlock]:
        """Rows of the labels considered, a block at a time."""
        count = labels.count
        size = self.budget.labels(segment, self._short(segment))
        for start in range(0, count, size):
            yield self._block(start, min(start + size, count), labels)

    def _block(self, start: int, stop: int, labels: FetchedRows) -> LabelBlock:
        found = labels.columns(start, stop, self._read_fields)
        rows = {name: wide(one) for name, one in found.items()}
        if labels.label_ids is None:
            # Gains and names are found by the label's number, whichever rank scores it.
            start, stop = labels.first + start, labels.first + stop
            ids_GK = torch.arange(start, stop)[None]
        else:
            ids_GK = labels.label_ids[:, start:stop]
        if self.names is not None and self.training:
            rows["alone"] = self.names.marked(rows["alone"], ids_GK, self.config.name_alone)
        return LabelBlock(start, stop, None if labels.label_ids is None else ids_GK, rows)
