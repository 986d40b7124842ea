"""Causal models with adapters through every stage: no pad token, few special tokens, no GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_corpus import FILLERS, LABELS, UNSEEN, rows, words_of, write_config, write_jsonl
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, PhiConfig, PreTrainedTokenizerFast

from plant_dist.cli import main
from plant_dist.data.batches import Collator
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.sampling import BatchSampler
from plant_dist.models.adapters import is_adapter
from plant_dist.models.encoder import encoder_from_config
from plant_dist.stages.saved import SavedClassifier
from plant_dist.train.classify_task import ClassifyTask

pytestmark = pytest.mark.pipeline
TEST = [row for row in rows() if row["split"] == "test"]
WORDS = [*FILLERS, *(word for label in [*LABELS, UNSEEN] for word in words_of(label)), "."]


def write_causal(folder: Path, family: str) -> Path:
    """Save a tiny causal model in bf16, as LLMs are, and a tokenizer that cannot pad.

    One like GPT-2's adds no special token at all, one like Llama's adds one in front.
    """
    begins = ["<s>"] if family == "llama" else []
    names = [*begins, "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"eos_token": "</s>", "unk_token": "<unk>"}
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
        special["bos_token"] = "<s>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(folder))
    torch.manual_seed(3)
    config = {"llama": LlamaConfig, "phi": PhiConfig}[family](
        vocab_size=len(names), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=len(begins), dtype="bfloat16",
    )  # fmt: skip
    encoder_from_config(config).save_pretrained(str(folder))
    return folder


def write_run(folder: Path, family: str, **encoder: Any) -> Path:
    """Write corpus, labels, encoder and the config of a run with adapters."""
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "docs.jsonl", rows())
    names = [{"id": label, "text": " ".join(words_of(label))} for label in LABELS]
    write_jsonl(folder / "labels.jsonl", names)
    place = write_causal(folder / "encoder", family)
    return write_config(
        folder,
        encoder={"name": str(place), "lora_rank": 2, **encoder},
        rank={"kind": "contextual", "epochs": 2, "labels_per_batch": 16, "list_tokens": 4,
              "sampled_tokens": 8},
        train={"epochs": 2, "documents_per_batch": 8, "checkpoint_steps": 3, "log_steps": 1,
               "optim": {"learning_rate": 0.02, "encoder_learning_rate": 0.01,
                         "unfreeze_epochs": [0.0, 1.0]}},
        evaluate={"ks": [1, 3], "baselines": ["encoder"]},
    )  # fmt: skip


def predicted(model: Path, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    texts = write_jsonl(model.parent / "texts.jsonl", TEST)
    capsys.readouterr()
    assert main(["predict", "--model", str(model), str(texts), "--tokens", "1"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def logits_of(folder: Path) -> torch.Tensor:
    saved = SavedClassifier.load(folder, torch.device("cpu"))
    special = saved.segmentation.special.count
    assert special in (0, 1)
    tokens = csr_from_lists([[5, 6, 7, 8] * 9, [9, 10], [11] * 24])
    sampler = BatchSampler(tokens.lengths(), saved.segmentation, documents_per_batch=3,
                           shuffle=False)  # fmt: skip
    [share] = list(sampler.batches())
    none = csr_from_lists([[], [], []])
    batch = Collator(saved.segmentation)(tokens.take(share.rows), none, share)
    with torch.no_grad():
        logits: torch.Tensor = saved.model(batch.input_ids, batch.attention_mask, batch.keep).logits
    return logits


@pytest.mark.parametrize(("family", "held"), [("llama", "bf16"), ("phi", "fp32")])
def test_adapters_train_are_saved_and_predict_what_was_evaluated(
    inputs: Path, tmp_path: Path, family: str, held: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_run(tmp_path / "made", family, load_in=held), tmp_path / "made" / "run"
    assert main(["run", "--config", str(config), "--debug"]) == 0
    before = load_file(tmp_path / "made" / "encoder" / "model.safetensors")
    # The folder must need neither the encoder's nor the run's files.
    moved = Path(shutil.move(run / "classifier", tmp_path / "moved"))
    report = json.loads((run / "report" / "report.json").read_text())
    shutil.rmtree(tmp_path / "made")
    tensors = load_file(moved / "model.safetensors")
    own = {n: t for n, t in tensors.items() if n.startswith("encoder.")}
    frozen = {
        name.removeprefix("encoder.backbone.").replace(".base_layer", ""): tensor
        for name, tensor in own.items() if not is_adapter(name)
    }  # fmt: skip
    assert frozen.keys() == before.keys()
    for name, tensor in frozen.items():
        # Half precision is what the file had; single holds the same values.
        assert torch.equal(tensor.float(), before[name].float()), name
        assert tensor.dtype == (torch.bfloat16 if held == "bf16" else torch.float32)
    # Both runs of depths have thawed, so that every B has left 0.
    learnt = [tensor for name, tensor in own.items() if "lora_B" in name]
    assert len(learnt) == {"llama": 14, "phi": 12}[family]
    assert all(tensor.abs().max() > 0 for tensor in learnt)
    records = predicted(moved, capsys)
    chosen = [{label["id"] for label in record["labels"]} for record in records]
    right = sum(len(one & {*row["labels"]}) for one, row in zip(chosen, TEST, strict=True))
    total = sum(map(len, chosen)) + sum(len(row["labels"]) for row in TEST)
    wanted = report["systems"]["PLANT"]["metrics"]["micro_f1"]
    assert 2 * right / total == pytest.approx(wanted, abs=1e-9)
    assert wanted > 0.5
    assert torch.equal(logits_of(moved), logits_of(moved))
    shutil.copytree(moved, tmp_path / "again")
    SavedClassifier.load(moved, torch.device("cpu")).model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(tmp_path / "again"), logits_of(moved))


def test_an_interrupted_training_of_adapters_goes_on_exactly(inputs: Path, tmp_path: Path) -> None:
    """Checkpoints hold adapters and labels; the frozen weights are read again."""
    words = ["--debug", "--config", str(write_run(tmp_path, "llama", load_in="bf16"))]
    for stage in ("prepare", "mig", "rank"):
        assert main([stage, *words]) == 0
    run, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(run, whole)
    assert main(["train", *words, "--output", str(whole)]) == 0
    loss, calls = ClassifyTask.loss, iter(range(8))

    def stopped(*given: Any) -> torch.Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return loss(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifyTask, "loss", stopped)
        assert main(["train", *words]) == 130
    [weights] = sorted((run / "checkpoints" / "train").glob("step-*/model-*.safetensors"))[-1:]
    kept = load_file(weights)
    assert all(is_adapter(name) for name in kept if name.startswith("encoder."))
    assert main(["train", *words]) == 0
    one, two = (load_file(r / "classifier" / "model.safetensors") for r in (run, whole))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
