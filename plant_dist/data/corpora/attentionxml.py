"""The layout of AttentionXML: Eurlex-4K, Wiki10-31K, AmazonCat-13K, Amazon-670K, Wiki-500K.

`data.path` is a folder with `{train,test}_raw_texts.txt` or `{train,test}_texts.txt` (tokenised)
and `{train,test}_labels.txt`: line n of both is one document, its labels separated by blanks.
`/SEP/`, which ends the title, becomes a line break. Options (`data.reader_options`): `texts`
(`raw`, `tokenised`, or `auto`: raw where there is such a file). `data.labels_path` may name the
labels. Must not know how a label string is meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.files.label_files import named_labels
from plant_dist.data.files.lines import existing_folder, find_splits, read_aligned, words
from plant_dist.data.files.sources import config_digest
from plant_dist.data.files.sparse import refuse_features
from plant_dist.data.records import Document, Label
from plant_dist.errors import ConfigError, DataError

TEXTS = {"raw": "{}_raw_texts.txt", "tokenised": "{}_texts.txt"}
HOLDS = "train_raw_texts.txt and train_labels.txt"
_TITLE_END = "/SEP/"


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader."""

    texts: str = "auto"


def open(data: DataConfig) -> AttentionXmlCorpus:
    """Open the corpus of a folder.

    Raises:
        ConfigError: an option is unknown.
        DataError: the folder is missing, or holds no texts or no labels of them.
    """
    options = parse_options(Options, data.reader_options, "attentionxml")
    if options.texts not in ("auto", *TEXTS):
        raise ConfigError(
            f"data.reader_options.texts is {options.texts!r}; choose auto, raw or tokenised"
        )
    folder = existing_folder(data.path, HOLDS)
    kinds = list(TEXTS) if options.texts == "auto" else [options.texts]
    texts = find_splits(folder, *(TEXTS[kind] for kind in kinds))
    if not texts:
        refuse_features(folder, HOLDS)
        wanted = " or ".join(TEXTS[kind].format("train") for kind in kinds)
        raise DataError(
            f"{folder} holds no {wanted}; name the folder that does in data.path, or the reader of "
            "its files in data.reader"
        )
    labels = find_splits(folder, "{}_labels.txt")
    for split, path in texts.items():
        if split not in labels:
            raise DataError(f"{path} has no labels beside it; add {split}_labels.txt")
    return AttentionXmlCorpus(data, {split: (texts[split], labels[split]) for split in texts})


class AttentionXmlCorpus:
    """Texts and label strings, aligned line by line."""

    def __init__(self, data: DataConfig, files: dict[str, tuple[Path, Path]]) -> None:
        self._data, self._files = data, files

    def describe(self) -> str:
        """Return the folder and the text files in one line."""
        names = ", ".join(texts.name for texts, _ in self._files.values())
        return f"attentionxml, {self._data.path}: {names}"

    def fingerprint(self) -> str:
        """Return a hash of the folder."""
        return config_digest(self._data)

    def labels(self) -> Iterator[Label]:
        """Stream the labels of `data.labels_path`; none where it is unset."""
        return named_labels(self._data)

    def documents(self) -> Iterator[Document]:
        """Stream the documents; ids are split and line, from 0."""
        for split, files in self._files.items():
            rows = read_aligned(files, self._data.encoding)
            for number, (where, (text, labels)) in enumerate(rows):
                yield Document(
                    f"{split}-{number}", text.replace(_TITLE_END, "\n"),
                    tuple(words(labels)), split, where=where,
                )  # fmt: skip
