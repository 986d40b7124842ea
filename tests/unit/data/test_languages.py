"""Any script, any length, any label: nothing is lost, merged or moved on its way into a dataset."""

from __future__ import annotations

import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from plant_dist.config.schema import DataConfig, TokensConfig
from plant_dist.data import gather as gather_module
from plant_dist.data.corpora import open_corpus
from plant_dist.data.files.label_files import line_labels
from plant_dist.data.prepare import prepare_dataset
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.tokens import (
    corpus_tokenizer,
    encode,
    encode_with_spans,
    load_tokenizer,
    tokenizer_digest,
    with_normal_form,
)
from plant_dist.data.vocabulary import LabelSpace

FORMS = ("nfc", "nfd", "nfkc", "nfkd")
# What normal forms compose, decompose or replace: marks, jamo, ligatures, wide and Arabic forms.
PIECES = [
    "e\u0301", "é", "ﬁ", "１２", "½", "\u1112\u1161\u11ab", "한", "ﷺ", "ﻼ", "שָׁלוֹם", "\ufb2a", "कि",
    "\u212b", "\u00c5", "Ω", "\u1e9b\u0323", "文字", "ไทย", "👩\u200d⚕", "𝔘", "x", "word", "²",
]  # fmt: skip
SCRIPTS = {
    "Arabic": "حُمَّى حادة في الصدر", "Hebrew": "חוֹם גבוה", "Chinese": "急性发热。无咳嗽",
    "Thai": "ไข้เฉียบพลัน", "Devanagari": "तीव्र ज्वर", "Greek": "οξύς πυρετός",
    "Cyrillic": "острая лихорадка", "Korean": "급성 발열",
    "mixed": "fever حمى fever \u200fחום 发热 👩\u200d⚕\ufe0f",
}  # fmt: skip
ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
PROSE = st.lists(st.sampled_from([*PIECES, " ", " "]), min_size=1, max_size=12).map("".join)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Splits at white space and punctuation, every other character known by its bytes."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="[UNK]", vocab={
        "[UNK]": 0, **{f"<0x{n:02X}>": n + 1 for n in range(256)}
    }, merges=[]))  # fmt: skip
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def composes(character: str) -> bool:
    """Whether a character joins the one before it: a mark, or a vowel or final jamo."""
    return unicodedata.combining(character) > 0 or "\u1160" <= character <= "\u11ff"


@pytest.fixture
def prepare(tmp_path: Path, write_jsonl):
    numbers = itertools.count()

    def run(rows, tokens=None, tokenizer=None, **data) -> PreparedDataset:
        folder = tmp_path / f"dataset-{next(numbers)}"
        folder.mkdir()
        config = DataConfig(path=write_jsonl(rows), validation_fraction=0.0, **data)
        tokens = tokens or TokensConfig(segment_tokens=64)
        made = tokenizer or bytes_tokenizer()
        return prepare_dataset(open_corpus(config), config, tokens, made, folder, seed=0)

    return run


@given(rows=st.lists(st.tuples(ANY, st.lists(ANY, min_size=1, max_size=4)), min_size=1, max_size=5))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_texts_and_labels_are_those_of_the_corpus(prepare, rows) -> None:
    # White space is no name; JSON lists may hold any other string as a label.
    labels = [[one for one in names if one.strip()] or ["a"] for _, names in rows]
    found = prepare(
        {"text": text, "labels": names, "split": "train"}
        for (text, _), names in zip(rows, labels, strict=True)
    ) if all(text.strip() for text, _ in rows) else None  # fmt: skip
    if found is None:
        return
    documents = found.documents("train")
    assert documents["text"][:] == [text for text, _ in rows]
    ids = list(found.label_space.ids)
    assert set(ids) == {name for names in labels for name in names}
    assert [{ids[at] for at in one} for one in documents["labels"]] == [set(one) for one in labels]


def test_labels_that_look_alike_stay_apart(prepare) -> None:
    labels = [
        "café", "cafe\u0301", "a b", "a  b", " a b", "a,b", "a;b", "a/b", "A/B", "a\u00a0b",
        "ﬁ", "fi", "Straße", "STRASSE", "ا", "أ", "1", "01", "1.0", "true", "null", "a\tb", "a\nb",
    ]  # fmt: skip
    found = prepare([{"text": "x", "labels": labels, "split": "train"}])
    assert sorted(found.label_space.ids) == sorted(labels)
    assert found.label_csr("train").row(0).tolist() == list(range(len(labels)))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_keep_text_evidence_and_offsets(prepare, name: str) -> None:
    text = SCRIPTS[name]
    words = text.split()
    start = text.index(words[-1])
    span = {"label": name, "start": start, "end": start + len(words[-1])}
    row = {"text": text, "labels": [name], "evidence": [span], "split": "train"}
    for form in ("as_is", *FORMS):
        tokenizer = with_normal_form(bytes_tokenizer(), form)
        found = prepare([row], TokensConfig(segment_tokens=64, unicode=form), tokenizer)
        document = found.documents("train")[0]
        assert document["text"] == text
        cut = slice(document["evidence_start"][0], document["evidence_end"][0])
        assert document["text"][cut] == words[-1]
        # The saved tokenizer reads the same form, and its spans are of the original.
        ids, spans = encode_with_spans(found.tokenizer(), [text])
        assert ids[0] == document["input_ids"]
        inside = [one for one in spans[0] if one[0] >= cut.start and one[1] <= cut.stop]
        assert inside
        assert max(end for _, end in spans[0]) == len(text)


@pytest.mark.parametrize("form", FORMS)
@given(text=PROSE)
@settings(max_examples=40, deadline=None)
def test_a_normal_form_is_read_and_offsets_stay_the_original_s(form: str, text: str) -> None:
    plain, formed = bytes_tokenizer(), with_normal_form(bytes_tokenizer(), form)
    normal = unicodedata.normalize(form.upper(), text)
    assert encode(formed, [text]) == encode(plain, [normal])
    _, [spans] = encode_with_spans(formed, [text])
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    # Every letter of the original lies under some token: what is attended can be shown. What was
    # composed is found at its first character, so that marks and inner jamo may lie outside.
    covered = {place for start, end in spans for place in range(start, end)}
    missing = {one for place, one in enumerate(text) if place not in covered and not one.isspace()}
    assert not {one for one in missing if not composes(one)}


def test_two_spellings_become_one_token_and_stay_two_texts(prepare) -> None:
    rows = [
        {"text": text, "labels": [text], "split": "train"} for text in ("caf\u00e9", "cafe\u0301")
    ]
    raw = prepare(rows)
    formed = prepare(rows, TokensConfig(unicode="nfc"), with_normal_form(bytes_tokenizer(), "nfc"))
    first, second = raw.documents("train")["input_ids"]
    assert first != second
    first, second = formed.documents("train")["input_ids"]
    assert first == second
    assert formed.documents("train")["text"][:] == ["caf\u00e9", "cafe\u0301"]
    assert len(formed.label_space) == 2


def test_a_form_survives_saving_also_for_a_model_s_own_class(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fine", "f"]
    bert = BertTokenizer(vocab={word: n for n, word in enumerate(words)})
    assert isinstance(bert.backend_tokenizer.normalizer, normalizers.BertNormalizer)
    before = tokenizer_digest(bert)
    bert.save_pretrained(str(tmp_path / "plain"))
    tokens = TokensConfig(unicode="nfkc")
    formed = corpus_tokenizer(tokens, str(tmp_path / "plain"))
    formed.save_pretrained(str(tmp_path / "formed"))
    loaded = load_tokenizer(str(tmp_path / "formed"))
    assert tokenizer_digest(loaded) == tokenizer_digest(formed) != before
    for one in (formed, loaded):
        # Special tokens and lower-casing are still there, after the form.
        assert one("ﬁNE")["input_ids"] == [2, 5, 3]
        assert one.pad_token_id == 0
    assert tokenizer_digest(corpus_tokenizer(TokensConfig(), str(tmp_path / "plain"))) == before


def test_documents_of_one_and_of_200_thousand_tokens(prepare, tokenizer) -> None:
    words = np.random.default_rng(1).choice(["fever", "cough", "pain"], 200_000)
    rows = [
        {"text": text, "labels": ["a"], "split": "train"} for text in ("fever", " ".join(words))
    ]
    found = prepare(rows, tokenizer=tokenizer)
    assert found.token_csr("train").lengths().tolist() == [1, 200_000]
    # Ids of the small tokenizer, as its fixture says.
    known = {"fever": 4, "cough": 5, "pain": 6}
    assert found.token_csr("train").row(1).tolist() == [known[word] for word in words]
    assert found.statistics["documents"]["train"]["segments"] == 1 + -(-200_000 // 62)


def test_chunks_of_long_documents_end_early_and_change_nothing(prepare, monkeypatch) -> None:
    rows = [{"text": f"fever {'x ' * n}", "labels": [str(n)], "split": "train"} for n in range(30)]
    whole = prepare(rows)
    sizes = []
    enter = gather_module._Pass.enter
    monkeypatch.setattr(
        gather_module._Pass, "enter",
        lambda self, documents: sizes.append(len(documents)) or enter(self, documents),
    )  # fmt: skip
    monkeypatch.setattr(gather_module, "CHUNK_CHARACTERS", 100)
    cut = prepare(rows)
    assert max(sizes) < 30 == sum(sizes)
    assert cut.documents("train")[:] == whole.documents("train")[:]


def test_two_million_labels_are_two_million(tmp_path: Path) -> None:
    count = 2_000_000
    path = tmp_path / "Y.txt"
    with path.open("w", encoding="utf-8") as stream:
        # Every name two thousand times, so that only the place in the file tells labels apart.
        block = "".join(f"label, {n}; é/{n % 7} ع\n" for n in range(1000))
        stream.writelines(block for _ in range(count // 1000))
    space = LabelSpace.create(line_labels(path, DataConfig()))
    assert len(space) == count
    assert space.texts[count - 1] == space.texts[999] == "label, 999; é/5 ع"
    assert space.indices(["0", "1999999", "2000000"]).tolist() == [0, count - 1, -1]


def test_json_keeps_what_other_formats_cannot_spell(prepare) -> None:
    text = "line\u2028separator\x85next\x0bvertical\x00nul\ufeffmark"
    found = prepare([json.loads(json.dumps({"text": text, "labels": [text], "split": "train"}))])
    assert found.documents("train")["text"][0] == text
    assert list(found.label_space.ids) == [text]
