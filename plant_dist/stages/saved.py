"""A saved classifier folder, opened: model, tokenizer, label space, thresholds.

The folder is all that prediction needs. What lies in it is checked to belong together before
anything is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from plant_dist.artifacts import read_manifest, require_content
from plant_dist.config.schema import TokensConfig
from plant_dist.data.prepared import LABEL_SPACE
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import load_tokenizer, tokenizer_digest
from plant_dist.data.vocabulary import LabelSpace
from plant_dist.errors import ArtifactError, PlantError
from plant_dist.metrics.calibration import Calibration
from plant_dist.metrics.thresholds import Thresholds
from plant_dist.models.averaged import AveragedClassifier
from plant_dist.models.classifier import (
    PlantConfig,
    PlantForMultiLabelClassification,
    register,
)
from plant_dist.runtime.context import RunContext
from plant_dist.shortlist.index import LabelIndex
from plant_dist.stages.rows import ROWS, fill_saved_rows
from plant_dist.train.label_vectors import LabelTexts, VectorMaker
from plant_dist.train.scoring import AllLabels, BestOfAll, Retrieved, Scoring

THRESHOLDS = "thresholds.json"
CALIBRATION = "calibration.json"
INDEX = "shortlist"
REPAIR = "plant-dist train (then copy the whole classifier folder, not parts of it)"


@dataclass(frozen=True)
class SavedClassifier:
    """Everything that a classifier folder holds.

    Attributes:
        thresholds: None where the classifier had no validation split to tune them on.
        calibration: None where scores are the model's own; else thresholds are of calibrated ones.
        index: retrieves the labels to score; None where the classifier was trained on all.
    """

    folder: Path
    model: PlantForMultiLabelClassification
    tokenizer: PreTrainedTokenizerBase
    label_space: LabelSpace
    thresholds: Thresholds | None
    calibration: Calibration | None
    segmentation: Segmentation
    max_document_tokens: int | None
    index: LabelIndex | None = None

    @classmethod
    def load(cls, folder: Path, device: torch.device, with_index: bool = True) -> SavedClassifier:
        """Open a folder and move the model to a device, in evaluation mode.

        Args: with_index: open its index too, where it has one; exact scoring needs none.

        Raises:
            ArtifactError: the folder is not a classifier, a file in it is missing or damaged, or
                its tokenizer or label space is not the one that the model was trained with.
        """
        if not (folder / "config.json").is_file():
            inside = folder / "classifier"
            fix = f"name {inside}" if (inside / "config.json").is_file() else f"run: {REPAIR}"
            raise ArtifactError(f"{folder} holds no classifier (no config.json); {fix}")
        tokenizer, space = _open_words(folder)
        _check_carried(folder, tokenizer, space)
        model = _load_model(folder)
        if model.config.label_count != len(space):
            raise ArtifactError(
                f"{folder}: the model has {model.config.label_count} labels, its label space "
                f"{len(space)}; run: {REPAIR}"
            )
        model.eval()  # type: ignore[no-untyped-call]
        model.to(device)  # type: ignore[arg-type]
        assert isinstance(model.config, PlantConfig)
        tokens = _tokens_section(model.config)
        thresholds, calibration = _open_rules(folder, space)
        return cls(
            folder=folder,
            model=model,
            tokenizer=tokenizer,
            label_space=space,
            thresholds=thresholds,
            calibration=calibration,
            segmentation=Segmentation.of(tokens, tokenizer),
            max_document_tokens=tokens.max_document_tokens,
            index=_open_index(folder, model, space) if with_index else None,
        )

    def scoring(self, exact: bool, candidates: int | None = None) -> Scoring:
        """Return what scores documents: their shortlists, the best of all, or all labels.

        Args:
            exact: score all labels, also where there is an index.
            candidates: labels scored; the classifier's own number if None.
        """
        if self.model.retriever is None:
            return AllLabels(self.model)
        count = candidates or int(self.model.config.retriever["candidates"])
        if exact or self.index is None:
            return BestOfAll(self.model, count)
        index = self.index
        return Retrieved(self.model, index.search, lambda: index.about.vectors, count)

    def vector_maker(self, context: RunContext) -> VectorMaker:
        """Return what makes the vectors that the index holds and is searched with."""
        space = self.label_space
        texts = LabelTexts(space.train_frequency, space.texts, self.tokenizer)
        return VectorMaker(self.model, texts, self.segmentation, context)


def _open_index(
    folder: Path, model: PlantForMultiLabelClassification, space: LabelSpace
) -> LabelIndex | None:
    if model.retriever is None:
        return None
    repair = "plant-dist shortlist"
    index = LabelIndex.load(folder / INDEX, space.digest, repair=repair)
    kind, width = index.about.vectors, index.about.width
    if kind not in model.retriever.kinds or model.retriever.width_of(kind) != width:
        raise ArtifactError(
            f"{folder / INDEX} holds {kind} vectors of {width} numbers, which the classifier does "
            f"not have; run: {repair}"
        )
    return index


def averaged(
    one: SavedClassifier, folders: Sequence[str | Path], device: torch.device
) -> AveragedClassifier:
    """Return a classifier and those of other folders as one.

    Raises:
        ArtifactError: they do not read the same tokens in the same segments, or score other labels,
            or one is given twice.
    """
    places = [one.folder.resolve(), *(Path(folder).resolve() for folder in folders)]
    if len(set(places)) < len(places):
        raise ArtifactError(
            f"{one.folder} averaged with {', '.join(map(str, folders))} would count one of them "
            "twice; name each once"
        )
    # None is asked to retrieve: the mean is over all labels.
    others = [SavedClassifier.load(Path(folder), device, with_index=False) for folder in folders]
    for other, where in zip(others, folders, strict=True):
        _require_averageable(one, other, str(where))
    return AveragedClassifier([one.model, *(other.model for other in others)])


def _require_averageable(one: SavedClassifier, other: SavedClassifier, where: str) -> None:
    repair = "train both from one dataset, with the same section tokens"
    for kind, here, there in (
        ("label_space", one.label_space.digest, other.label_space.digest),
        ("tokenizer", tokenizer_digest(one.tokenizer), tokenizer_digest(other.tokenizer)),
    ):
        require_content(kind.replace("_", " "), there, here, where, repair)
    cuts = [(each.segmentation, each.max_document_tokens) for each in (one, other)]
    if cuts[0] != cuts[1]:
        raise ArtifactError(f"{where} cuts documents into other segments; {repair}")


def _open_rules(folder: Path, space: LabelSpace) -> tuple[Thresholds | None, Calibration | None]:
    """Open decision rules and the calibration, which only mean something together."""
    path, curves = folder / THRESHOLDS, folder / CALIBRATION
    thresholds = Thresholds.load(path) if path.is_file() else None
    calibration = Calibration.load(curves, space.train_frequency) if curves.is_file() else None
    if (thresholds is not None and thresholds.calibrated) != (calibration is not None):
        raise ArtifactError(
            f"{folder}: {THRESHOLDS} and {CALIBRATION} do not belong together, one speaks of "
            f"calibrated scores and the other does not; run: {REPAIR}"
        )
    return thresholds, calibration


def _open_words(folder: Path) -> tuple[PreTrainedTokenizerBase, LabelSpace]:
    try:
        return load_tokenizer(str(folder)), LabelSpace.load(folder / LABEL_SPACE)
    except PlantError as error:
        # What those say on mending is for a folder that the user has named, not for this one.
        reason = str(error).split(";")[0]
        raise ArtifactError(f"{folder} is no whole classifier: {reason}; run: {REPAIR}") from error


def _load_model(folder: Path) -> PlantForMultiLabelClassification:
    register()
    try:
        # Local files only: a mistyped folder may well be the name of something on the hub.
        loaded: Any = PlantForMultiLabelClassification.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # safetensors and transformers raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"{folder}: the model cannot be read: {reason}; run: {REPAIR}"
        ) from error
    model, info = loaded
    assert isinstance(model, PlantForMultiLabelClassification)
    apart: set[str] = set()
    if (folder / ROWS).is_dir():
        # Rows that were sharded in training lie in files of their own.
        fill_saved_rows(model, folder)
        apart = {f"decoder.labels.fields.{name}" for name in model.labels.fields}
    # Transformers fills what a file lacks with noise, and only warns.
    amiss = sorted({*info["missing_keys"], *info["unexpected_keys"]} - apart)
    if amiss:
        raise ArtifactError(
            f"{folder}: model.safetensors and config.json do not belong together ({len(amiss)} "
            f"tensors differ, such as {amiss[0]}); run: {REPAIR}"
        )
    return model


def _check_carried(folder: Path, tokenizer: PreTrainedTokenizerBase, space: LabelSpace) -> None:
    """Compare hashes with the manifest's; a folder that lost its manifest is taken as it is."""
    manifest = read_manifest(folder)
    if manifest is None:
        return
    found = {"tokenizer": tokenizer_digest(tokenizer), "label_space": space.digest}
    for kind, digest in manifest.carries.items():
        kind_in_words = kind.replace("_", " ")
        require_content(kind_in_words, digest, found.get(kind, digest), str(folder), REPAIR)


def _tokens_section(config: PlantConfig) -> TokensConfig:
    return TokensConfig(
        segment_tokens=config.segment_tokens,
        overlap_tokens=config.overlap_tokens,
        max_document_tokens=config.max_document_tokens,
    )
