"""Files of Annif: documents in tables, lines and folders, vocabularies."""

from __future__ import annotations

import json

from damage import BINARY, GONE, Sample, csv_rows, cut, files, jsonl, latin, lines, put, swap

SKOS = """@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
<http://x.org/1> a skos:Concept ; skos:prefLabel "fièvre"@fr .
<http://x.org/2> a skos:Concept ; skos:prefLabel "toux"@fr ; skos:broader <http://x.org/1> .
"""
SAMPLES = {
    "annif tsv": Sample(
        files(
            docs__tsv="fever é\t<http://x.org/1> <http://x.org/2>\ncough\t\npain\t<http://x.org/1>\n",
            vocabulary__tsv="<http://x.org/1>\té one\n<http://x.org/2>\ttwo\n",
        ),
        {"reader": "annif", "train_path": "{}/docs.tsv", "labels_path": "{}/vocabulary.tsv"},
        {
            "missing column": ("docs.tsv", swap(b"cough\t", b"cough")),
            "encoding": ("docs.tsv", latin),
            "no uri": ("docs.tsv", swap(b"<http://x.org/2>", b"<>")),
            "binary": ("docs.tsv", BINARY),
            "twice": ("vocabulary.tsv", swap(b"x.org/2", b"x.org/1")),
            "gone": ("vocabulary.tsv", GONE),
        },
        lines("docs.tsv"),
    ),
    "annif csv": Sample(
        files(docs__csv="text,subject_uris\nfever é,<http://x.org/1>\ncough,\n"),
        {"reader": "annif", "train_path": "{}/docs.csv"},
        {
            "missing column": ("docs.csv", swap(b"subject_uris", b"uris")),
            "encoding": ("docs.csv", latin),
            "a field too few": ("docs.csv", swap(b"cough,", b"cough")),
            "binary": ("docs.csv", BINARY),
        },
        lambda folder: csv_rows(folder, "docs.csv", ","),
    ),
    "annif jsonl": Sample(
        files(docs__jsonl=jsonl([{"text": "fever é", "subjects": [{"uri": "http://x.org/1"}]}])),
        {"reader": "annif", "train_path": "{}/docs.jsonl"},
        {
            "truncated": ("docs.jsonl", cut(0.8)),
            "encoding": ("docs.jsonl", latin),
            "missing column": ("docs.jsonl", swap(b'"text"', b'"t"')),
            "binary": ("docs.jsonl", BINARY),
            "no subject": ("docs.jsonl", swap(b"}]", b"}, 1]")),
            "neither uri nor label": ("docs.jsonl", swap(b'"uri"', b'"u"')),
        },
    ),
    "annif folder": Sample(
        lambda folder: put(
            folder,
            {
                "full/a.txt": "fever é\n",
                "full/a.tsv": "<http://x.org/1>\tone\n",
                "full/b.json": json.dumps({"text": "x", "subjects": []}),
                "full/c.txt": "pain",
                "full/c.key": "toux\n",
                "v.ttl": SKOS,
            },
        ),
        {
            "reader": "annif",
            "train_path": "{}/full",
            "labels_path": "{}/v.ttl",
            "reader_options": {"language": "fr"},
        },
        {
            "encoding": ("full/a.txt", latin),
            "binary": ("full/b.json", BINARY),
            "uri": ("full/a.tsv", swap(b"x.org/1", b"x org")),
            "truncated": ("full/b.json", cut()),
            "vocabulary truncated": ("v.ttl", cut(0.7)),
            "vocabulary binary": ("v.ttl", BINARY),
            "vocabulary gone": ("v.ttl", GONE),
        },
    ),
}
