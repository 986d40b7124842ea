"""`plant-dist export`: what the program has made, in the files of other tools.

A dispatcher: what is exported decides who writes it. A folder appears whole or not at all.
"""

from __future__ import annotations

from pathlib import Path

from plant_dist.artifacts import read_manifest, written_whole
from plant_dist.data.export import FORMATS, Exported, export_corpus
from plant_dist.data.prepared import PreparedDataset
from plant_dist.errors import ConfigError


def export_dataset(dataset: Path, name: str, folder: Path) -> str:
    """Write a prepared dataset as a corpus of another tool, and return what to tell the user.

    Args:
        dataset: folder that `prepare` made.
        name: one of `plant_dist.data.export.FORMATS`.
        folder: a new one, or an empty one.

    Raises:
        ConfigError: the folder is not empty, or the format is unknown.
        ArtifactError: there is no prepared dataset, or the disk is full.
    """
    if name not in FORMATS:
        raise ConfigError(f"format {name!r} is none of {', '.join(FORMATS)}")
    require_free(folder)
    if read_manifest(dataset) is None and read_manifest(dataset / "dataset") is not None:
        raise ConfigError(f"{dataset} is a run folder; name its dataset: {dataset / 'dataset'}")
    content = PreparedDataset.load(dataset)
    with written_whole(folder) as fresh:
        exported = export_corpus(content, name, fresh)
    return _told(exported, folder)


def require_free(folder: Path) -> None:
    """Refuse a folder that holds something: what it held would be gone.

    Raises:
        ConfigError: it does, or is no folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty; name another place with --out")


def _told(exported: Exported, folder: Path) -> str:
    lines = [f"written to {folder}"]
    if exported.flattened:
        lines.append(f"{exported.flattened} texts and names: line ends (or tabs) became blanks")
    lines += [f"{count} {what}: left out, the format has no place for them"
              for what, count in exported.left_out.items()]  # fmt: skip
    paths = {key: str(folder / value) for key, value in exported.settings.items()}
    words = [f"--set data.{key}={value}" for key, value in {**exported.options, **paths}.items()]
    return "\n".join([*lines, f"to read it again: plant-dist prepare … {' '.join(words)}"])
