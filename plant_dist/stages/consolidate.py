"""`plant-dist export --model RUN`: a training's checkpoint becomes one classifier folder.

On one process, whatever ranks and engine wrote it, a piece after another: no more than a file of
the result is in memory. The folder is that of `save_pretrained`, and `predict` and `evaluate` open
it; decision thresholds are tuned at the end of training and are not there before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from plant_dist.artifacts import write_json, written_whole
from plant_dist.config.load import build_section
from plant_dist.config.schema import EncoderConfig
from plant_dist.data.prepared import LABEL_SPACE, TOKENIZER
from plant_dist.errors import ArtifactError
from plant_dist.labels.files import ABOUT, pieces
from plant_dist.models.adapters import add_adapters
from plant_dist.models.classifier import PlantConfig
from plant_dist.models.encoder import SegmentEncoder, load_encoder
from plant_dist.runtime.checkpoint import pointed
from plant_dist.runtime.checkpoint_files import read_manifest
from plant_dist.runtime.held import AVERAGES, MODEL
from plant_dist.runtime.pieces import Pieces
from plant_dist.stages.belongings import MODEL_CONFIG
from plant_dist.stages.export import require_free
from plant_dist.stages.rows import ROWS
from plant_dist.stages.saved import INDEX
from plant_dist.train.shortlists import CURRENT, unlink_prefix

FILE_BYTES = 1 << 30  # of one weights file, and so about the memory that exporting takes
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


def export_model(run: Path, folder: Path) -> str:
    """Write a run's classifier as one folder, and return what to tell the user.

    Args:
        run: a run folder, or a checkpoint of its training (`checkpoints/train/step-…`).
        folder: a new one, or an empty one.

    Raises:
        ConfigError: the folder is not empty.
        ArtifactError: the run has neither classifier nor checkpoint, or it is damaged.
    """
    require_free(folder)
    made = run / "classifier"
    if (made / "manifest.json").is_file():
        with written_whole(folder) as fresh:
            shutil.copytree(made, fresh, dirs_exist_ok=True)
        return f"written to {folder}: the finished classifier of {run}"
    checkpoint = _checkpoint_of(run)
    manifest = read_manifest(checkpoint)
    with written_whole(folder) as fresh:
        _write_classifier(checkpoint, manifest, fresh)
    return (
        f"written to {folder}: step {manifest['step']} of {run}, saved by {manifest['processes']} "
        "processes; without thresholds, which are tuned at the end of training: give predict "
        "--top-k or --threshold"
    )


def _checkpoint_of(run: Path) -> Path:
    if (run / MODEL_CONFIG).is_file():
        return run
    checkpoints = run / "checkpoints" / "train"
    found = pointed(checkpoints, "best") or pointed(checkpoints, "latest")
    if found is None:
        raise ArtifactError(
            f"{run} holds neither a classifier nor a checkpoint of its training; run: plant-dist "
            "train --config CONFIG"
        )
    return found


def _write_classifier(checkpoint: Path, manifest: Mapping[str, Any], fresh: Path) -> None:
    config = PlantConfig.from_json_file(checkpoint / MODEL_CONFIG)
    config.save_pretrained(fresh)
    given = _given(config, manifest["config"])
    with Pieces(checkpoint, MODEL) as model, Pieces(checkpoint, AVERAGES) as averages:
        parts: dict[str, Callable[[], Tensor]] = {
            name: partial((averages if name in averages else model).read, name) for name in model
        }
        parts |= {name: one.clone for name, one in given.items() if name not in parts}
        _write_weights(parts, fresh)
    if any(pieces(checkpoint)):
        _write_rows(checkpoint, fresh / ROWS)
    shutil.copytree(checkpoint / TOKENIZER, fresh, dirs_exist_ok=True)
    shutil.copytree(checkpoint / LABEL_SPACE, fresh / LABEL_SPACE)
    if any(checkpoint.glob(f"{CURRENT}.*")):
        (fresh / INDEX).mkdir()
        unlink_prefix(checkpoint, fresh / INDEX, f"{CURRENT}.")


def _given(config: PlantConfig, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the frozen weights beside adapters, which no checkpoint holds."""
    if not config.lora:
        return {}
    backbone = load_encoder(build_section(EncoderConfig, settings["encoder"]))
    add_adapters(backbone, config.lora)
    encoder = SegmentEncoder(backbone)
    return {f"encoder.{name}": one for name, one in encoder.state_dict().items()}


def _write_weights(parts: Mapping[str, Callable[[], Tensor]], folder: Path) -> None:
    """Write tensors into files of bounded size, with an index where there are several."""
    paths: list[Path] = []
    placed: dict[str, int] = {}
    total = 0
    for number, content in enumerate(_filled(parts)):
        paths.append(folder / f".weights-{number}")
        # What transformers wants to read there.
        save_file(content, paths[-1], metadata={"format": "pt"})
        placed.update(dict.fromkeys(content, number))
        total += sum(one.nbytes for one in content.values())
    names = [f"model-{n + 1:05d}-of-{len(paths):05d}.safetensors" for n in range(len(paths))]
    if len(paths) == 1:
        names = [WEIGHTS]
    for path, name in zip(paths, names, strict=True):
        path.rename(folder / name)
    if len(paths) > 1:
        places = {name: names[number] for name, number in placed.items()}
        about = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / WEIGHTS_INDEX, about)


def _filled(parts: Mapping[str, Callable[[], Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield tensors in groups of about `FILE_BYTES`."""
    content: dict[str, Tensor] = {}
    size = 0
    for name, read in parts.items():
        one = read().contiguous()
        if content and size + one.nbytes > FILE_BYTES:
            yield content
            content, size = {}, 0
        content[name] = one
        size += one.nbytes
    yield content


def _write_rows(checkpoint: Path, folder: Path) -> None:
    """Write label rows without what their optimizer remembers, a piece after another."""
    folder.mkdir()
    for _, _, path in pieces(checkpoint):
        with safe_open(path, framework="pt") as piece:
            rows = {key: piece.get_tensor(key) for key in piece.keys() if key.endswith(".rows")}  # noqa: SIM118
        save_file(rows, folder / path.name)
    about = json.loads((checkpoint / ABOUT).read_text(encoding="utf-8"))
    write_json(folder / ABOUT, about)
