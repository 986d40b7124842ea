"""`rank --show`: the best tokens of a label and the labels of a token, against the artifacts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_corpus import LABELS, UNSEEN, rows, words_of
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from plant_dist.cli import main
from plant_dist.data.prepared import PreparedDataset
from plant_dist.mig.lists import GainTable
from plant_dist.stages.show_words import TokenWords

pytestmark = pytest.mark.pipeline


def sections(text: str) -> dict[str, list[list[str]]]:
    """Table name -> rows of cells, without the heading; tables of one answer."""
    found: dict[str, list[list[str]]] = {}
    rows: list[list[str]] = []
    for line in text.splitlines():
        if line in ("by gain", "learned"):
            rows = found[line] = []
        elif line.startswith("  "):
            rows.append([cell.strip() for cell in line.strip().split("  ") if cell.strip()])
    return {name: some[1:] for name, some in found.items()}


def ask(capsys: pytest.CaptureFixture[str], config: str, *words: str) -> str:
    capsys.readouterr()
    assert main(["rank", "--config", config, "--debug", *words]) == 0
    return capsys.readouterr().out


def learnt_scores(run: Path) -> tuple[list[str], np.ndarray]:
    """Tokens of training documents, and every label's standard scores of them, (L, C)."""
    dataset = PreparedDataset.load(run / "dataset")
    ranker = load_file(run / "ranker" / "ranker.safetensors")
    seen = np.flatnonzero(GainTable.load(run / "gains").token_documents)
    scores = ranker["factor"] @ ranker["scorer.factors"][seen].T + ranker["scorer.bias"][seen]
    scores = scores.double().numpy()
    standard = (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)
    return dataset.tokenizer().convert_ids_to_tokens(seen.tolist()), standard


def test_the_best_tokens_of_a_label(
    finished: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label, run = LABELS[4], finished / "run"
    text = ask(capsys, config, "--show", label, "--top", "5")
    found = sections(text)
    assert text.startswith(f"label {label} ({' '.join(words_of(label))}): ")
    assert {row[0] for row in found["by gain"][:2]} == {*words_of(label)}
    _, gains = GainTable.load(run / "gains").label(4)
    assert [row[1] for row in found["by gain"]] == [f"{gain:.4f}" for gain in gains[:5]]
    names, standard = learnt_scores(run)
    best = np.argsort(-standard[4])[:5]
    assert [row[0] for row in found["learned"]] == [names[place] for place in best]
    assert [float(row[1]) for row in found["learned"]] == pytest.approx(
        standard[4][best], abs=0.006
    )


def test_the_labels_of_a_token(
    finished: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    word = words_of(LABELS[7])[1]
    # Capitals are the tokenizer's business.
    found = sections(ask(capsys, config, "--show-token", word.upper(), "--top", "3"))
    assert found["by gain"][0][0] == LABELS[7]
    names, standard = learnt_scores(finished / "run")
    column = standard[:, names.index(word)]
    ids = PreparedDataset.load(finished / "run" / "dataset").label_space.ids
    best = [ids[place] for place in np.argsort(-column)[:3]]
    assert [row[0] for row in found["learned"]] == best
    assert float(found["learned"][0][-1]) == pytest.approx(column.max(), abs=0.006)


def test_several_questions_are_answered_in_turn(
    finished: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ask(capsys, config, "--show", "L00", "--show", UNSEEN, "--show-token", "patient")
    assert [line.split()[1].rstrip(":,") for line in text.splitlines()
            if line.startswith(("label ", "token "))] == ["L00", UNSEEN, "patient"]  # fmt: skip
    # Training never shows it: there is no gain, and nothing but noise was learnt.
    assert "by gain\n  (none)" in text
    # Of a text of several tokens each is shown, once.
    text = ask(capsys, config, "--show-token", "the patient the")
    tokens = [line.split()[1] for line in text.splitlines() if line.startswith("token ")]
    assert tokens == ["the,", "patient,"]


def test_words_that_pieces_stand_in(inputs: Path, tmp_path: Path) -> None:
    """Of a tokenizer of letters, counted by a regular expression in the texts themselves."""
    letters = sorted({*"".join(row["text"].lower() for row in rows())} - {" "})
    names = ["[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces = models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    made = Tokenizer(pieces)
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(tmp_path)
    words = ["--set", f"tokens.tokenizer={tmp_path}", "--output", str(tmp_path / "run")]
    assert main(["prepare", "--config", str(inputs / "config.yaml"), *words, "--debug"]) == 0
    dataset = PreparedDataset.load(tmp_path / "run" / "dataset")
    tokenizer, train = dataset.tokenizer(), [row for row in rows() if row["split"] == "train"]
    within, start, never = tokenizer.convert_tokens_to_ids(["##w", "w", "[UNK]"])
    label = dataset.label_space.index(LABELS[4])
    found = TokenWords(dataset, tokenizer).of([within, start, never], label)
    assert found[never] == ""
    for token, pattern in ((within, r"\w+w\w*"), (start, r"\bw\w*")):
        holders = [row for row in train if re.search(pattern, row["text"].lower())]
        # The label's own documents first, then the earlier ones.
        holders.sort(key=lambda row: LABELS[4] not in row["labels"])
        counts: Counter[str] = Counter()
        for row in holders[:20]:
            counts.update(re.findall(pattern, row["text"].lower()))
        expected = sorted(counts, key=lambda word: (-counts[word], word))[:3]
        assert len(counts) > 1 or token == within
        assert found[token] == ", ".join(expected)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--show", "L99"), 3, "label 'L99' is not among the 13 of the label space"),
        (("--show-token", " "), 3, "--show-token ' ' has no token; give a word or a token"),
        (("--show", "L00", "--top", "0"), 2, "--top is 0"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    finished: Path,
    config: str,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    assert main(["rank", "--config", config, *words]) == code
    assert said in capsys.readouterr().err


def test_artifacts_that_are_not_there_name_their_command(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rank", "--config", config, "--output", str(tmp_path), "--show", "L00"]
    assert main(words) == 4
    assert "plant-dist prepare --config" in capsys.readouterr().err


def test_a_contextual_ranker_reads_each_token_alone(
    finished: Path, run_copy: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(run_copy), "--set", "rank.kind=contextual", "--set", "rank.epochs=1"]
    assert main(["rank", "--config", config, *words, "--debug"]) == 0
    found = sections(ask(capsys, config, *words, "--show", "L02", "--top", "4"))
    # The same numbers, from one text of one token at a time.
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(finished / "encoder", add_pooling_layer=False).eval()
    tokenizer = PreparedDataset.load(run_copy / "dataset").tokenizer()
    ranker = load_file(run_copy / "ranker" / "ranker.safetensors")
    seen = np.flatnonzero(GainTable.load(run_copy / "gains").token_documents).tolist()
    with torch.no_grad():
        states = torch.stack([
            encoder(torch.tensor([[2, token, 3]])).last_hidden_state[0, 1] for token in seen
        ])  # fmt: skip
    scores = states @ ranker["factor"][2] / states.shape[1] ** 0.5 + ranker["scorer.bias"][seen]
    standard = (scores - scores.mean()) / scores.std(correction=0)
    best = standard.topk(4)
    names = tokenizer.convert_ids_to_tokens([seen[place] for place in best.indices.tolist()])
    assert [row[0] for row in found["learned"]] == names
    assert [float(row[1]) for row in found["learned"]] == pytest.approx(
        best.values.tolist(), abs=0.006
    )
