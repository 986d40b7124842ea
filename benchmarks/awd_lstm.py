"""An AWD-LSTM as the encoder: forward, backward, their mean, and what each part is worth.

    python benchmarks/awd_lstm.py --config configs/debtags.yaml --documents 3000

Draws `--documents` training documents and fewer others, trains a WordPiece tokenizer on the former
(`--vocabulary`), then a classifier for each row of `ROWS`, every one in a run folder of its own; a
finished one is not run again. `pooled` is the plain mean of all states and a linear
head; `no language model` starts from an LSTM of noise. Writes results/awd-lstm-NAME.md and .json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path

import numpy as np
from machine import described_machine
from seeds import read_report, run
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from plant_dist.cli import main as plant_dist
from plant_dist.config.load import load_config
from plant_dist.data.prepared import PreparedDataset

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
METRICS = ("p@1", "p@5", "psp@5", "map", "micro_f1", "macro_f1")
FORWARD, BACKWARD, AVERAGED = "forward", "backward", "forward and backward, averaged"
BARE = "forward, no language model"
POOLED = "model.branches=[pooled]"
ROWS: dict[str, tuple[str, ...]] = {
    FORWARD: (),
    BACKWARD: ("lstm.direction=backward",),
    BARE: ("encoder.random_weights=true",),
    "forward, pooled": (POOLED,),
    "forward, pooled, no language model": (POOLED, "encoder.random_weights=true"),
}


def write_corpus(place: Path, corpus: Path, options: argparse.Namespace) -> Path:
    """Draw documents of each split of a corpus in gzipped JSONL, unless they are there."""
    if not place.is_file():
        with gzip.open(corpus, "rt", encoding="utf-8") as stream:
            lines = stream.read().splitlines()
        by_split: dict[str, list[str]] = {}
        for line in lines:
            by_split.setdefault(json.loads(line)["split"], []).append(line)
        random = np.random.default_rng(0)
        sizes = {"train": options.documents, "validation": options.held_out,
                 "test": 2 * options.held_out}  # fmt: skip
        drawn = [
            some[number]
            for split, some in by_split.items()
            for number in sorted(random.permutation(len(some))[: sizes[split]])
        ]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\n".join(drawn) + "\n", encoding="utf-8")
    return place


def write_tokenizer(folder: Path, texts: list[str], vocabulary: int) -> Path:
    """Train a lower-case WordPiece tokenizer; one that is there is taken as it is."""
    if not (folder / "tokenizer.json").is_file():
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=SPECIAL)
        made.train_from_iterator(texts, trainer)
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        PreTrainedTokenizerFast(
            tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
            sep_token="[SEP]",
        ).save_pretrained(str(folder))  # fmt: skip
    return folder


def settings_of(options: argparse.Namespace, tokenizer: Path) -> list[str]:
    """Return what all rows share: a network that one core trains in minutes."""
    return [
        f"extends={HERE.parent / 'configs/variants/awd_lstm.yaml'}",
        f"tokens.tokenizer={tokenizer}", f"lstm.width={options.width}",
        f"lstm.inner_width={2 * options.width}",
        # Batches of a large corpus leave a small one too few steps to learn anything: 30 steps at
        # 4,096 tokens ended at the perplexity of token frequencies (docs/findings.md).
        f"lm.epochs={options.epochs}", "lm.tokens_per_batch=1024",
        # Half of the paper's rates, which are for a network three times as wide.
        "lstm.embedding_dropout=0.05", "lstm.input_dropout=0.3", "lstm.hidden_dropout=0.1",
        "lstm.output_dropout=0.2", "lstm.weight_dropout=0.25",
        "evaluate.baselines=[popularity]", *options.set,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=HERE.parent / "configs/debtags.yaml")
    parser.add_argument("--documents", type=int, default=3000, help="of the training split")
    parser.add_argument("--held-out", type=int, default=400, help="of validation; twice of test")
    parser.add_argument("--vocabulary", type=int, default=6000, help="tokens of the tokenizer")
    parser.add_argument("--width", type=int, default=128, help="of embeddings and states")
    parser.add_argument("--epochs", type=int, default=8, help="of the language model")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--output", type=Path, help="run folders; runs/awd-lstm-NAME if unset")
    options = parser.parse_args()
    name = options.config.stem
    output = (options.output or Path(f"runs/awd-lstm-{name}")).resolve()
    # The tokenizer is made of the training texts that are drawn, so the split comes first.
    corpus = load_config(options.config, options.set).data.path
    if corpus is None:
        parser.error(f"{options.config} names no corpus; add --set data.path=FILE")
    options.given = [word for setting in options.set for word in ("--set", setting)]
    options.set.append(f"data.path={write_corpus(output / 'docs.jsonl', Path(corpus), options)}")
    words = [word for setting in options.set for word in ("--set", setting)]
    prepare = ["prepare", "--config", str(options.config), "--output", str(output / "texts")]
    if code := plant_dist([*prepare, *words]):
        sys.exit(code)
    texts = PreparedDataset.load(output / "texts" / "dataset").documents("train")["text"]
    tokenizer = write_tokenizer(output / "tokenizer", list(texts), options.vocabulary)
    shared = settings_of(options, tokenizer)
    found: dict[str, dict[str, float]] = {}
    for row, own in ROWS.items():
        folder, settings = output / row.replace(", ", "-").replace(" ", "-"), [*shared, *own]
        if "lstm.direction=backward" in own:
            settings.append(f"evaluate.average_with={output / FORWARD / 'classifier'}")
        elif row != FORWARD:
            # The same language model, or one of its shape, without training it again.
            settings += ["encoder.kind=transformers",
                         f"encoder.name={output / FORWARD / 'language_model'}"]  # fmt: skip
        run(options.config, folder, settings)
        report = read_report(folder)
        found[row] = report["PLANT"]
        if "PLANT, averaged" in report:
            found[AVERAGED] = report["PLANT, averaged"]
        found["popularity"] = report["popularity"]
    perplexity = {
        way: json.loads((output / way / "language_model/report.json").read_text())["best_metrics"]
        for way in (FORWARD, BACKWARD)
    }
    found["popularity"] = found.pop("popularity")
    text = report_of(name, options, found, perplexity)
    content = {"rows": found, "perplexity": perplexity, "machine": described_machine()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"awd-lstm-{name}.md").write_text(text, encoding="utf-8")
    (RESULTS / f"awd-lstm-{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(text)


def report_of(
    name: str, options: argparse.Namespace, rows: dict[str, dict[str, float]],
    perplexity: dict[str, dict[str, float]],
) -> str:  # fmt: skip
    """Return a row a system, percent; the best of each column is bold."""
    best = {metric: max(row[metric] for row in rows.values()) for metric in METRICS}
    lines = [
        f"# {name}: AWD-LSTM as the encoder, test split, percent", "",
        f"`python benchmarks/awd_lstm.py --config configs/{options.config.name} --documents "
        f"{options.documents} --held-out {options.held_out} --vocabulary {options.vocabulary} "
        f"--width {options.width} --epochs "
        f"{' '.join([str(options.epochs), *options.given])}`: seed 0, one run a row. "
        f"{described_machine()}.", "",
        *(f"Language model, {way}: validation perplexity {one['perplexity']:.1f}, of token "
          f"frequencies alone {one['unigram_perplexity']:.1f}." for way, one in perplexity.items()),
        "", f"| | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|",
    ]  # fmt: skip
    for row, found in rows.items():
        cells = [
            f"**{100 * found[metric]:.1f}**" if found[metric] == best[metric]
            else f"{100 * found[metric]:.1f}" for metric in METRICS
        ]  # fmt: skip
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
