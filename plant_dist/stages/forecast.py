"""What a cluster that is not at hand would have to hold, send and compute: the command `plan`.

From the settings, the number of labels and what the machines can do; nothing is loaded, and no
corpus needs to be there. `benchmarks/label_scaling.py` holds the same arithmetic against measured
runs. Must not know ranks of this run: there are none.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from plant_dist.config.schema import Config
from plant_dist.errors import ConfigError
from plant_dist.labels.choice import RowsPlan, plan_rows
from plant_dist.models.shapes import EncoderShape, encoder_shape
from plant_dist.stages.estimate import (
    Part,
    Share,
    considered_labels,
    label_widths,
    parts_of,
    step_of,
)
from plant_dist.stages.traffic import (
    LONG,
    IndexSize,
    Machine,
    Traffic,
    index_size,
    seconds_of,
    traffic_of,
    vector_width,
)

# Without a config: what a label space of this kind needs.
USUAL = ("train.labels=shortlist", "model.branches=[learned, planted]",
         "encoder.name=google-bert/bert-base-uncased")  # fmt: skip
# Python with torch, transformers, datasets, FAISS, TorchRec loaded and a run begun, before there is
# anything in it.
PROGRAM_BYTES = 0.56 * 2**30
# Of a GPU's memory, what its context and the communicators take.
CONTEXT_BYTES = 1.5e9
ASKED = ("labels", "gpus", "gpus_per_node", "gpu_memory", "documents", "tokens", "compute",
         "memory_rate", "link_rate", "search_rate")  # fmt: skip
LABEL_MAPS = 2  # integers a label that every rank holds: training frequencies, offsets of gains


@dataclass(frozen=True)
class Forecast:
    """What a rank holds and does.

    Attributes:
        labels: L. share: its part of a batch.
        rows: how label rows are kept.
        device: what the model and its training take where it computes.
        step: bytes that a step takes beside, by part.
        index: its shard; None where all labels are scored.
        host: bytes of host memory, by part.
        sent: bytes of a step. seconds: of a step, by part.
    """

    labels: int
    share: Share
    rows: RowsPlan
    device: Sequence[Part]
    step: Mapping[str, float]
    index: IndexSize | None
    host: Mapping[str, float]
    sent: Traffic
    seconds: Mapping[str, float]

    @property
    def device_bytes(self) -> float:
        """All that a rank's device holds."""
        return sum(part.total for part in self.device) + sum(self.step.values())

    @property
    def host_bytes(self) -> float:
        """All that a rank takes of its host."""
        return sum(self.host.values())


def forecast(
    config: Config, encoder: EncoderShape, labels: int, share: Share, machine: Machine
) -> Forecast:
    """Return what training with these settings takes of each rank.

    Args:
        share: documents and padded tokens of a rank's batch.

    Raises:
        ConfigError: no index fits into `shortlist.memory_mb`.
    """
    shortlisted = config.train.labels == "shortlist"
    rows = plan_rows(
        config.labels, labels, label_widths(config, encoder.width), machine.ranks, machine.memory,
        shortlisted=shortlisted, rowwise=config.train.optim.rowwise,
    )  # fmt: skip
    index = None
    if shortlisted:
        # Shards of the index are even, also where rows are replicated.
        owned = -(-labels // machine.ranks)
        index = index_size(config, owned, vector_width(config, encoder))
    step = step_of(config, encoder, labels, share, rows)
    sent = traffic_of(config, encoder, labels, share, rows, machine.ranks)
    device = parts_of(config, encoder, labels, rows, machine.ranks)
    return Forecast(
        labels, share, rows, device, step, index, _host_bytes(config, labels, index, device), sent,
        seconds_of(config, encoder, labels, share, sent, index, machine),
    )  # fmt: skip


def _host_bytes(
    config: Config, labels: int, index: IndexSize | None, device: Sequence[Part]
) -> dict[str, float]:
    host = {"program": PROGRAM_BYTES, "label maps": float(LABEL_MAPS * labels * LONG)}
    if config.runtime.async_checkpoints != "never":
        # Written beside training, from a copy.
        host["checkpoint"] = sum(part.weights + part.moments for part in device)
    if index is not None:
        host["index"] = index.bytes
        # A new one is built beside the one in use.
        host["building the next"] = index.building
    return host


@dataclass(frozen=True)
class PlanOptions:
    """What `plant-dist plan` is asked; see its --help."""

    labels: int | None
    machine: Machine
    documents: int
    tokens: int | None

    @classmethod
    def from_namespace(cls, options: argparse.Namespace) -> PlanOptions:
        """Take the options of the same names from the command line.

        Raises:
            ConfigError: one is below 1.
        """
        given = {name: getattr(options, name) for name in ASKED}
        for name, value in given.items():
            if value is not None and value < 1:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} is {value:g}; it must be at least 1")
        counts = {name: None if value is None else round(value) for name, value in given.items()}
        machine = Machine(
            ranks=counts["gpus"] or 1, ranks_per_node=counts["gpus_per_node"] or 1,
            memory=options.gpu_memory, compute=options.compute, memory_rate=options.memory_rate,
            link_rate=options.link_rate, search_rate=options.search_rate,
        )  # fmt: skip
        return cls(counts["labels"], machine, counts["documents"] or 1, counts["tokens"])


def describe_forecast(config: Config, options: PlanOptions) -> str:
    """Return the forecast as text.

    Raises:
        ConfigError: a size is not given, the encoder's architecture is unknown, or no index fits.
    """
    if config.runtime.precision == "auto":
        # What `auto` takes on a GPU that computes it in hardware, as those one would plan for do.
        config = replace(config, runtime=replace(config.runtime, precision="bf16"))
    labels = options.labels or config.plan.labels
    if labels is None:
        raise ConfigError("how many labels? give --labels, such as --labels 3M, or set plan.labels")
    tokens = options.tokens or config.plan.document_tokens or config.tokens.segment_tokens
    encoder = encoder_shape(config.encoder)
    share = Share(options.documents, options.documents * tokens)
    machine = options.machine
    found = forecast(config, encoder, labels, share, machine)
    used = found.device_bytes + CONTEXT_BYTES
    verdict = "fits" if used <= machine.memory else "does NOT fit"
    lines = [
        f"plan     {labels:,} labels on {machine.ranks} GPUs of {_gb(machine.memory)}, "
        f"{min(machine.ranks, machine.ranks_per_node)} a node, in {config.runtime.precision}",
        f"encoder  {config.encoder.name}: {encoder.parameters / 1e6:.1f} M parameters, "
        f"{encoder.width} wide",
        f"rows     {found.rows}",
        f"batch    {share.documents} documents of {tokens} tokens a GPU, "
        f"{considered_labels(config, labels):,} labels each",
        f"memory   {_gb(used)} of {_gb(machine.memory)} a GPU: {verdict}",
        *_device_lines(found),
        *_host_lines(found, machine),
        *_index_lines(found, machine, config, encoder),
        *_traffic_lines(found, machine),
        *_step_lines(found, machine),
    ]
    if used > machine.memory:
        lines.append(f"instead  {_advice(config, found)}")
    return "\n".join(lines)


def _device_lines(found: Forecast) -> list[str]:
    lines = []
    for part in found.device:
        kinds = {"weights": part.weights, "gradients": part.gradients, "optimizer": part.moments,
                 "copies": part.copies}  # fmt: skip
        lines.append(_line(part.name, part.total, kinds))
    return [*lines, _line("step", sum(found.step.values()), found.step),
            _line("context", CONTEXT_BYTES, {})]  # fmt: skip


def _host_lines(found: Forecast, machine: Machine) -> list[str]:
    ranks = min(machine.ranks, machine.ranks_per_node)
    return [f"host     {_gb(ranks * found.host_bytes)} a node of {ranks} ranks",
            _line("a rank", found.host_bytes, found.host)]  # fmt: skip


def _index_lines(
    found: Forecast, machine: Machine, config: Config, encoder: EncoderShape
) -> list[str]:
    if found.index is None:
        return ["index    none: all labels are scored"]
    return [
        f"index    {found.index.factory} of {vector_width(config, encoder)} numbers: "
        f"{_gb(found.index.bytes)} a rank, {_gb(machine.ranks * found.index.bytes)} in all"
    ]


def _traffic_lines(found: Forecast, machine: Machine) -> list[str]:
    sent = found.sent
    kinds = {"ids": sent.ids, "rows": sent.rows, "gradients": sent.gradients}
    others = {"all-reduce": sent.shared, "document vectors and found labels": sent.questions}
    return [
        f"traffic  all-to-all {_gb(machine.ranks * sent.all_to_all)} a step over all ranks",
        _line("a rank", sent.all_to_all, kinds),
        _line("beside", sum(others.values()), others),
    ]


def _step_lines(found: Forecast, machine: Machine) -> list[str]:
    total = sum(found.seconds.values())
    said = ", ".join(f"{name} {1e3 * one:.1f}" for name, one in found.seconds.items() if one)
    each = machine.ranks * found.share.documents / total
    return [
        f"step     about {1e3 * total:.0f} ms, nothing overlapping: {said}; {each:,.0f} documents "
        "a second",
        f"         at {machine.compute / 1e12:g} TFLOP/s; a second, {_gb(machine.memory_rate)} of "
        f"memory, {_gb(machine.link_rate)} between ranks, {_gb(machine.search_rate)} of index",
    ]


def _advice(config: Config, found: Forecast) -> str:
    """Name the setting that the largest part hangs on."""
    largest = max(found.device, key=lambda part: part.total)
    if sum(found.step.values()) > largest.total:
        return "a smaller --documents, or encoder.gradient_checkpointing=true"
    if largest.name == "static gains":
        return "model.branches without static, or a smaller mig.top_tokens"
    if largest.name == "encoder":
        return "encoder.lora_rank, or train.optim.freeze_encoder=true"
    if found.rows.engine == "replicated":
        return "labels.engine=sharded"
    return "more --gpus, labels.placement=uvm (rows in the host's memory), or a smaller rank.width"


def _line(name: str, total: float, kinds: Mapping[str, float]) -> str:
    said = ", ".join(f"{kind} {_gb(size)}" for kind, size in kinds.items() if size)
    return f"         {name:<13} {_gb(total):>10}{': ' + said if said else ''}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
