"""A SKOS vocabulary as labels: preferred labels are texts, broader concepts are parents.

Needs rdflib (extra `annif`), and holds the whole vocabulary in memory. Must not know documents.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plant_dist.data.records import Label
from plant_dist.errors import DataError, RuntimeSetupError

FORMATS = {
    ".ttl": "turtle", ".rdf": "xml", ".xml": "xml", ".skos": "xml", ".owl": "xml", ".nt": "nt",
    ".n3": "n3", ".jsonld": "json-ld",
}  # fmt: skip


def is_rdf(path: Path) -> bool:
    """Say whether a file name has a suffix of RDF."""
    return path.suffix.lower() in FORMATS


def read_concepts(path: Path, language: str | None) -> Iterator[Label]:
    """Stream the concepts that are not deprecated, in the order of their URIs.

    Args:
        language: of the preferred labels; unset takes the only language there is.

    Raises:
        RuntimeSetupError: rdflib is not installed.
        DataError: the file is no RDF, holds no concept, or a concept has preferred labels in
            several languages and none is asked for, or two in one.
    """
    graph, rdflib = _parse(path)
    skos, owl = rdflib.namespace.SKOS, rdflib.namespace.OWL
    # Sorted, because a graph has no order and label indices must be stable.
    concepts = sorted(set(graph.subjects(rdflib.namespace.RDF.type, skos.Concept)), key=str)
    if not concepts:
        raise DataError(f"{path} holds no skos:Concept; name the vocabulary's own file")
    for concept in concepts:
        deprecated = graph.value(concept, owl.deprecated)
        if deprecated is not None and deprecated.toPython() is True:
            continue
        names = list(graph.objects(concept, skos.prefLabel))
        parents = {*graph.objects(concept, skos.broader), *graph.subjects(skos.narrower, concept)}
        yield Label(
            str(concept), _preferred(names, language, f"{path}: {concept}"),
            tuple(sorted(map(str, parents))),
        )  # fmt: skip


def _parse(path: Path) -> tuple[Any, Any]:
    try:
        rdflib: Any = importlib.import_module("rdflib")
    except ImportError:
        raise RuntimeSetupError(
            f"{path} is RDF, which needs rdflib; run: pip install 'plant-dist[annif]'"
        ) from None
    if not path.is_file():
        raise DataError(f"file {path} does not exist; check data.labels_path")
    # It logs every unusual literal with a traceback; what is wrong is said below.
    logging.getLogger("rdflib").setLevel(logging.CRITICAL)
    try:
        return rdflib.Graph().parse(str(path), format=FORMATS[path.suffix.lower()]), rdflib
    # Each of its parsers has errors of its own.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"{path} is no whole {path.suffix} file of RDF: {reason}") from None


def _preferred(names: list[Any], language: str | None, where: str) -> str:
    if language is not None:
        names = [name for name in names if name.language == language]
    if len(names) > 1:
        found = ", ".join(sorted(str(name.language) for name in names))
        raise DataError(
            f"{where} has {len(names)} preferred labels ({found}); set "
            "data.reader_options.language, or keep one"
        )
    return str(names[0]) if names else ""
