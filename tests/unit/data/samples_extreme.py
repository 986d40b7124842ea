"""Files of extreme classification: AttentionXML, XMC, PECOS, LibMultiLabel, fastText."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from damage import (
    BINARY,
    GONE,
    Edit,
    Sample,
    cut,
    files,
    jsonl,
    latin,
    lines,
    put,
    swap,
    without_last_line,
)
from scipy import sparse


def write_xmc_lines(folder: Path) -> None:
    put(folder, {"trn_X.txt": "fever é\ncough\npain\n", "trn_X_Y.txt": "3 2\n0:1 1:1\n\n1:1\n",
                 "Y.txt": "é one\ntwo\n", "filter_labels_train.txt": "0 1\n2 0\n"})  # fmt: skip


def write_pecos_matrix(folder: Path) -> None:
    put(folder, {"X.trn.txt": "fever é\ncough\npain\n", "output-items.txt": "é one\ntwo\n"})
    matrix = sparse.csr_array(np.array([[1, 1], [0, 0], [0, 1]], np.float32))
    sparse.save_npz(folder / "Y.trn.npz", matrix)


def npz_of_width(width: int) -> Edit:
    def edit(raw: bytes) -> bytes:
        stream = io.BytesIO()
        sparse.save_npz(stream, sparse.csr_array(np.ones((3, width), np.float32)))
        return stream.getvalue()

    return edit


SAMPLES = {
    "attentionxml": Sample(
        files(train_raw_texts__txt="fever é\ncough\npain\n", train_labels__txt="a b\n\nc\n"),
        {"reader": "attentionxml", "path": "{}"},
        {
            "truncated texts": ("train_raw_texts.txt", without_last_line),
            "truncated labels": ("train_labels.txt", without_last_line),
            "encoding": ("train_raw_texts.txt", latin),
            "binary": ("train_labels.txt", BINARY),
            "gone": ("train_labels.txt", GONE),
        },
        lines("train_raw_texts.txt"),
    ),
    "xmc json": Sample(
        files(
            trn__json=jsonl(
                [{"title": "fever é", "target_ind": [0, 1]}, {"title": "x", "target_ind": []}]
            ),
            lbl__json=jsonl([{"title": "é one"}, {"title": "two"}]),
        ),
        {"reader": "xmc", "path": "{}"},
        {
            "truncated": ("trn.json", cut(0.7)),
            "binary": ("trn.json", BINARY),
            "encoding": ("trn.json", latin),
            "missing column": ("trn.json", swap(b"target_ind", b"y")),
            "out of range": ("trn.json", swap(b"[0, 1]", b"[0, 2]")),
            "negative": ("trn.json", swap(b"[0, 1]", b"[-1]")),
            "no number": ("trn.json", swap(b"[0, 1]", b'["0"]')),
            "empty line": ("trn.json", swap(b"\n", b"\n\n")),
            "labels gone": ("lbl.json", GONE),
            "labels truncated": ("lbl.json", cut(0.6)),
        },
        lines("trn.json"),
    ),
    "xmc lines": Sample(
        write_xmc_lines,
        {"reader": "xmc", "path": "{}"},
        {
            "truncated texts": ("trn_X.txt", without_last_line),
            "truncated matrix": ("trn_X_Y.txt", without_last_line),
            "wrong count": ("trn_X_Y.txt", swap(b"3 2", b"4 2")),
            "no header": ("trn_X_Y.txt", swap(b"3 2\n", b"")),
            "out of range": ("trn_X_Y.txt", swap(b"0:1", b"2:1")),
            "negative": ("trn_X_Y.txt", swap(b"0:1", b"-1:1")),
            "no value": ("trn_X_Y.txt", swap(b"0:1", b"0:x")),
            "twice": ("trn_X_Y.txt", swap(b"0:1", b"1:1")),
            "filter out of range": ("filter_labels_train.txt", swap(b"2 0", b"3 0")),
            "filter label": ("filter_labels_train.txt", swap(b"0 1", b"0 2")),
            "filter shape": ("filter_labels_train.txt", swap(b"0 1", b"0 1 1")),
            "label names": ("Y.txt", without_last_line),
            "encoding": ("trn_X.txt", latin),
        },
        lines("trn_X.txt"),
    ),
    "pecos matrix": Sample(
        write_pecos_matrix,
        {"reader": "pecos", "path": "{}"},
        {
            "truncated": ("X.trn.txt", without_last_line),
            "encoding": ("X.trn.txt", latin),
            "binary": ("Y.trn.npz", BINARY),
            "half a matrix": ("Y.trn.npz", cut()),
            "width": ("Y.trn.npz", npz_of_width(3)),
            "gone": ("Y.trn.npz", GONE),
            "label names": ("output-items.txt", without_last_line),
        },
        lines("X.trn.txt"),
    ),
    "pecos lines": Sample(
        files(train__txt="0,1\tfever é\n\tcough\n1::0.5\tpain\n", names__txt="é one\ntwo\n"),
        {"reader": "pecos", "train_path": "{}/train.txt", "labels_path": "{}/names.txt"},
        {
            "missing column": ("train.txt", swap(b"\tcough", b"cough")),
            "encoding": ("train.txt", latin),
            "out of range": ("train.txt", swap(b"0,1", b"0,2")),
            "negative": ("train.txt", swap(b"0,1", b"-1")),
            "other digits": ("train.txt", swap(b"0,1", "٠".encode())),
            "binary": ("train.txt", BINARY),
            "weight": ("train.txt", swap(b"0.5", b"inf")),
            "names gone": ("names.txt", GONE),
        },
        lines("train.txt"),
    ),
    "libmultilabel": Sample(
        files(train__txt="0\ta b\tfever é\n1\t\tcough\n2\tc\tpain\n"),
        {"reader": "libmultilabel", "path": "{}"},
        {
            "missing column": ("train.txt", swap(b"1\t\t", b"1\t")),
            "encoding": ("train.txt", latin),
            "tab in text": ("train.txt", swap(b"cough", b"cou\tgh")),
            "binary": ("train.txt", BINARY),
            "id twice": ("train.txt", swap(b"2\tc", b"1\tc")),
            "empty": ("train.txt", cut(0)),
        },
        lines("train.txt"),
    ),
    "fasttext": Sample(
        files(train__txt="__label__a __label__b fever é\ncough\n__label__c pain\n"),
        {"reader": "fasttext", "path": "{}"},
        {
            "no name": ("train.txt", swap(b"__label__c", b"__label__")),
            "encoding": ("train.txt", latin),
            "binary": ("train.txt", BINARY),
            "empty": ("train.txt", cut(0)),
        },
        lines("train.txt"),
    ),
}
