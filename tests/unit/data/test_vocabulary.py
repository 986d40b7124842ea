"""The label space: order, look-up, digest, disk."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.data.records import Label
from plant_dist.data.vocabulary import LabelSpace
from plant_dist.errors import ArtifactError, DataError

ODD = ["401.9", " 4", "a;b", 'q"uote', "naïve", "é", "e\u0301", "𝛼🙂", "new\nline", "tab\t", "0"]


def space_of(*names: str) -> LabelSpace:
    return LabelSpace.create(Label(name, f"text of {name}") for name in names)


def test_declared_labels_come_first_in_their_order_then_the_others_sorted():
    space = space_of("z", "a").extended(["m", "z", "b", "m"])
    assert list(space.ids) == ["z", "a", "b", "m"]
    assert list(space.texts) == ["text of z", "text of a", "b", "m"]
    assert [space.index(name) for name in space.ids] == [0, 1, 2, 3]
    assert space.indices(["b", "nothing", "z"]).tolist() == [2, -1, 0]


def test_the_order_in_which_documents_mention_labels_does_not_matter():
    assert space_of("z").extended(["b", "a"]).digest == space_of("z").extended(["a", "b"]).digest


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), unique=True, max_size=20))
def test_any_unicode_id_survives_and_the_digest_is_the_stated_one(names):
    names = [name for name in names if name.isprintable()] + ODD[: len(names)]
    names = list(dict.fromkeys(names))
    space = LabelSpace.create(Label(name, "") for name in names)
    assert list(space.ids) == names
    assert list(space.texts) == names
    flat = b"".join(struct.pack("<Q", len(name.encode())) + name.encode() for name in names)
    assert space.digest == hashlib.sha256(flat).hexdigest()


def test_the_digest_sees_order_and_boundaries():
    digests = {space_of(*names).digest for names in (["ab", "c"], ["a", "bc"], ["c", "ab"])}
    assert len(digests) == 3


def test_round_trip_through_disk(tmp_path: Path):
    labels = [Label(name, name.upper(), ("0", "gone")) for name in ODD]
    space = LabelSpace.create(labels).with_frequency(np.arange(len(ODD)))
    space.save(tmp_path)
    loaded = LabelSpace.load(tmp_path)
    assert list(loaded.ids) == ODD
    assert loaded.texts[3] == ODD[3].upper()
    assert loaded.parents[2] == ["0", "gone"]
    assert loaded.train_frequency.tolist() == list(range(len(ODD)))
    assert loaded.train_frequency.dtype == np.int64
    assert loaded.digest == space.digest
    assert loaded.ids[1:3] == ODD[1:3]
    assert loaded.index("𝛼🙂") == ODD.index("𝛼🙂")


def test_parents_as_indices_leave_out_what_is_no_label():
    labels = [
        Label("root", ""), Label("a", "", ("root",)), Label("b", "", ("elsewhere", "a", "root")),
    ]  # fmt: skip
    offsets, values = LabelSpace.create(labels).extended(["x"]).parent_csr()
    assert offsets.tolist() == [0, 0, 1, 3, 3]
    assert values.tolist() == [0, 1, 0]


def test_reading_ids_builds_no_dictionary():
    space = space_of("a").extended(["b"])
    assert space.ids[1] == "b"
    assert "_positions" not in vars(space)


def test_repeated_empty_and_unknown_ids_are_refused():
    with pytest.raises(DataError, match=r"'b' is declared twice, as number 2 and number 3"):
        space_of("a", "b", "b")
    with pytest.raises(DataError, match="number 2 has an empty id"):
        space_of("a", "")
    with pytest.raises(DataError, match=r"'c' is not among the 2"):
        space_of("a", "b").index("c")
    with pytest.raises(DataError, match="3 frequencies were given for 1 labels"):
        space_of("a").with_frequency(np.zeros(3, np.int64))


@pytest.mark.parametrize(
    "label", [Label("a\ud800", ""), Label("a", "\ud800"), Label("a", "", ("\ud800",))]
)
def test_half_a_character_is_refused(label):
    with pytest.raises(DataError, match=r"label 'a.*' holds half a surrogate pair"):
        LabelSpace.create([label])


def test_a_missing_truncated_or_foreign_file_is_an_artifact_error(tmp_path: Path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        LabelSpace.load(tmp_path)
    space_of("a", "b").save(tmp_path)
    path = tmp_path / "labels.arrow"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        LabelSpace.load(tmp_path)


def test_no_labels_make_an_empty_space(tmp_path: Path):
    LabelSpace.create([]).save(tmp_path)
    loaded = LabelSpace.load(tmp_path)
    assert len(loaded) == 0
    assert loaded.parent_csr().size == 0
    assert loaded.digest == hashlib.sha256(b"").hexdigest()
