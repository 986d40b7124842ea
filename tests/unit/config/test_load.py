from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.config import Config, load_config, resolved_yaml
from plant_dist.config.load import as_plain, build_section, identity_of
from plant_dist.config.schema import (
    EVERY_BRANCH,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TokensConfig,
    TrainConfig,
)
from plant_dist.errors import ConfigError


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_without_a_file_everything_is_the_default() -> None:
    assert load_config(None) == Config()


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", {"seed": 3, "train": {"optim": {"betas": [0.8, 0.95]}}})
    config = load_config(path)
    assert config.seed == 3
    assert config.train.optim.betas == (0.8, 0.95)
    assert config == Config(
        seed=3, train=TrainConfig(optim=OptimConfig(betas=(0.8, 0.95))),
    )  # fmt: skip


def test_an_empty_file_and_an_empty_section_are_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "a.yaml", "")) == Config()
    assert load_config(write(tmp_path, "b.yaml", "train:\n")) == Config()


# Unknown keys


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trian": {}}, "unknown key trian; did you mean train?"),
        ({"train": {"epoch": 3}}, "unknown key train.epoch; did you mean train.epochs?"),
        (
            {"train": {"optim": {"warmup": 0.1}}},
            "unknown key train.optim.warmup; did you mean train.optim.warmup_fraction?",
        ),
        ({"model": {"gate": "sum"}}, "unknown key model.gate; did you mean model.gates?"),
        ({3: 4}, "unknown key 3; did you mean"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        load_config(write(tmp_path, "a.yaml", content))


# Types


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.optim.learning_rate=1e-4", 1e-4),
        ("train.optim.learning_rate=1E-4", 1e-4),
        ("train.optim.learning_rate=1.0e-4", 1e-4),
        ("train.optim.learning_rate=2", 2.0),
    ],
)
def test_a_number_may_be_written_as_people_write_it(word: str, value: float) -> None:
    found = load_config(None, [word]).train.optim.learning_rate
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.epochs=2.5", "train.epochs must be an integer, found 2.5"),
        ("train.epochs=true", "train.epochs must be an integer, found True"),
        ("train.epochs=", "train.epochs must be an integer, found None"),
        ("train.epochs='3'", "train.epochs must be an integer, found '3'"),
        ("train.optim.learning_rate=fast", "learning_rate must be a number, found 'fast'"),
        ("train.optim.learning_rate=true", "learning_rate must be a number, found True"),
        ("model.prior_bias=1", "model.prior_bias must be true or false, found 1"),
        ("name=3", r"name must be a string, found 3 \(an integer\)"),
        ("evaluate.ks=[1,a]", "evaluate.ks must be an integer, found 'a'"),
        ("data.reader_options=[1]", "data.reader_options must be a mapping"),
        ("train=3", "train must be a mapping, found an integer"),
        ("train.optim=[1]", "train.optim must be a mapping, found a list"),
    ],
)
def test_a_value_of_another_type_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [word])


def test_one_value_stands_for_a_list_of_one() -> None:
    assert load_config(None, ["evaluate.ks=5"]).evaluate.ks == (5,)
    assert load_config(None, ["model.branches=static"]).model.branches == ("static",)


def test_null_unsets_only_what_may_be_unset() -> None:
    assert load_config(None, ["model.planted_k=null"]).model.planted_k is None
    with pytest.raises(ConfigError, match=r"model\.state_k must be an integer"):
        load_config(None, ["model.state_k=null"])


# Ranges


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=-1", "^seed is -1; it must be at least 0"),
        ("model.dropout=0.95", "model.dropout is 0.95; it must be at most 0.9"),
        ("train.optim.learning_rate=0", "train.optim.learning_rate is 0.0; .* greater than 0"),
        ("train.loss.kind=hinge", "train.loss.kind is 'hinge'; choose one of: bce, focal, asl"),
        ("train.optim.learning_rate=.nan", "learning_rate is nan; it must be a finite number"),
        ("train.optim.learning_rate=nan", "learning_rate is nan; it must be a finite number"),
        ("train.optim.clip_norm=.inf", "clip_norm is inf; it must be a finite number"),
        ("train.optim.betas=[0.9]", r"train.optim.betas is \[0.9\]; give two numbers below 1"),
        ("train.optim.betas=[0.9, 1.0]", "give two numbers below 1"),
        ("model.branches=[]", "model.branches has 0 entries; give at least 1"),
        ("model.branches=[static, static]", "name each of its entries once"),
        ("model.branches=[static, dynamic]", "model.branches is 'dynamic'; choose one of"),
        ("evaluate.ks=[]", "evaluate.ks has 0 entries"),
        ("evaluate.ks=[3,0]", "evaluate.ks is 0; it must be at least 1"),
        ("rank.ndcg_at=[]", "rank.ndcg_at has 0 entries"),
        ("tokens.overlap_tokens=300", "overlap_tokens is 300; it must be at most half of"),
    ],
)
def test_a_value_out_of_range_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [word])


def test_the_bounds_themselves_are_allowed() -> None:
    assert ModelConfig(dropout=0.9, planted_k=1).planted_k == 1
    assert TokensConfig(segment_tokens=8, overlap_tokens=4).overlap_tokens == 4
    assert LossConfig(asl_clip=0.5, asl_gamma_positive=0.0).asl_clip == 0.5


# Overrides


def test_later_words_win_and_neighbours_stay(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", {"train": {"epochs": 7, "patience": 2}})
    config = load_config(path, ["train.epochs=1", "train.epochs=3"])
    assert (config.train.epochs, config.train.patience) == (3, 2)


@pytest.mark.parametrize("word", ["train.epochs", "=3", ""])
def test_a_word_without_key_or_value_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"must look like section\.key=value"):
        load_config(None, [word])


def test_a_number_too_large_is_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rate must be a number, found 1000"):
        load_config(None, [f"train.optim.learning_rate=1{'0' * 400}"])


def test_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not YAML; quote it"):
        load_config(None, ["name=2026-02-30"])


def test_a_word_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not YAML; quote it"):
        load_config(None, ["name=[1"])


def test_a_value_may_hold_equal_signs() -> None:
    assert load_config(None, ["data.path='a=b=c'"]).data.path == "a=b=c"


def test_a_path_may_name_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS_PLACE", "/somewhere")
    assert load_config(None, ["data.path=$CORPUS_PLACE/docs"]).data.path == "/somewhere/docs"


# Extends


def test_a_chain_of_files_is_merged_deeply_and_the_last_wins(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path, "base/bottom.yaml", {"seed": 1, "train": {"epochs": 9, "patience": 4}})
    write(tmp_path, "base/middle.yaml", {"extends": "bottom.yaml", "train": {"epochs": 5}})
    top = {"extends": "base/middle.yaml", "name": "top", "train": {"patience": 6}}
    config = load_config(write(tmp_path, "top.yaml", top), ["train.max_steps=8"])
    assert (config.name, config.seed) == ("top", 1)
    assert (config.train.epochs, config.train.patience, config.train.max_steps) == (5, 6, 8)


def test_a_mapping_of_options_is_merged_too(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", {"data": {"reader_options": {"a": 1, "b": 2}}})
    top = {"extends": "base.yaml", "data": {"reader_options": {"b": None}}}
    config = load_config(write(tmp_path, "top.yaml", top))
    assert config.data.reader_options == {"a": 1, "b": None}


def test_an_empty_section_says_nothing(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", {"train": {"epochs": 9}, "data": {"reader_options": {"a": 1}}})
    top = {"extends": "base.yaml", "train": None, "data": {"reader_options": None}}
    config = load_config(write(tmp_path, "top.yaml", top))
    assert config.train.epochs == 9
    assert config.data.reader_options == {"a": 1}


def test_a_word_of_null_empties_a_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", {"data": {"expected": {"labels": 3}, "path": "x"}})
    assert load_config(path, ["data.expected=null"]).data.expected == {}
    words = ["data.expected=null", "data.expected.source=mine"]
    assert load_config(path, words).data.expected == {"source": "mine"}
    assert load_config(path, ["data.reader_options=null"]).data.reader_options == {}
    # A variant's file is a file: what it leaves empty says nothing, also after `--set`.
    variant = write(tmp_path, "variant.yaml", {"data": {"expected": None}})
    assert load_config(path, [f"extends={variant}"]).data.expected == {"labels": 3}


def test_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", {"extends": "b.yaml"})
    write(tmp_path, "b.yaml", {"extends": "a.yaml"})
    with pytest.raises(ConfigError, match=r"a\.yaml: extends itself through a\.yaml -> b\.yaml"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("base", [3, ["b.yaml", 3], {"a": 1}])
def test_extends_must_name_a_file(tmp_path: Path, base: Any) -> None:
    write(tmp_path, "b.yaml", {})
    with pytest.raises(ConfigError, match="extends must name a file"):
        load_config(write(tmp_path, "a.yaml", {"extends": base}))


def test_of_several_bases_the_later_wins(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", {"seed": 1, "train": {"epochs": 5, "patience": 2}})
    write(tmp_path, "b.yaml", {"train": {"epochs": 7}, "tokens": {"segment_tokens": 64}})
    config = load_config(write(tmp_path, "c.yaml", {"extends": ["a.yaml", "b.yaml"], "name": "c"}))
    assert (config.seed, config.train.epochs, config.train.patience) == (1, 7, 2)
    assert config.tokens.segment_tokens == 64


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", {"extends": "absent.yaml"})
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        load_config(path)


def test_a_file_is_laid_over_a_config(tmp_path: Path) -> None:
    corpus = write(tmp_path, "corpus.yaml", {"name": "law", "train": {"epochs": 5, "patience": 2}})
    write(tmp_path, "base.yaml", {"train": {"epochs": 7}})
    variant = write(tmp_path, "large.yaml", {"extends": "base.yaml", "seed": 3})
    words = ["train.patience=4", f"extends={variant}", "seed=9"]
    config = load_config(corpus, words)
    # What comes later wins; what the variant does not say stays.
    assert (config.train.epochs, config.train.patience, config.seed) == (7, 4, 9)
    assert config.name == "law-large"
    assert load_config(corpus, [*words, "name=mine"]).name == "mine"
    assert load_config(None, [f"extends={variant}"]).name == "run-large"
    named = write(tmp_path, "named.yaml", {"name": "own"})
    assert load_config(corpus, [f"extends={named}"]).name == "own"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.extends=a.yaml", "only a whole config extends a file"),
        ("extends.seed=1", "only a whole config extends a file"),
        ("extends=[a.yaml]", "must name one file"),
        ("extends=absent.yaml", r"absent\.yaml does not exist"),
    ],
)
def test_what_cannot_be_laid_over(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [word])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n- 2\n", "must hold a mapping, found a list"),
        ("a: [1\n", "is not YAML"),
        ("name: 2026-02-30\n", "is not YAML: day is out of range"),
        (b"name: \xff\n", "cannot be read"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        load_config(path)


# Round trips and identity


@given(
    seed=st.integers(0, 2**31),
    rate=st.floats(1e-8, 10.0),
    k=st.none() | st.integers(1, 100),
    branches=st.lists(st.sampled_from(EVERY_BRANCH), min_size=1, unique=True),
    text=st.text(st.characters(exclude_characters="$", exclude_categories=("Cs", "Cc"))),
    options=st.dictionaries(st.text("ab", min_size=1), st.integers() | st.lists(st.booleans())),
)
@settings(deadline=None)
def test_the_resolved_yaml_reads_back_to_the_same_config(
    seed: int, rate: float, k: int | None, branches: list[str], text: str, options: dict[str, Any]
) -> None:
    content = {
        "seed": seed,
        "name": text,
        "data": {"reader_options": options},
        "model": {"planted_k": k, "branches": branches},
        "train": {"optim": {"learning_rate": rate}},
    }
    config = build_section(Config, content)
    again = build_section(Config, yaml.safe_load(resolved_yaml(config)))
    assert again == config
    assert again.train.optim.learning_rate == rate


def test_the_resolved_yaml_has_every_key() -> None:
    plain = yaml.safe_load(resolved_yaml(Config()))
    assert plain == as_plain(Config())
    assert set(plain) == {entry.name for entry in fields(Config)}
    assert set(plain["train"]["optim"]) == {entry.name for entry in fields(OptimConfig)}


def test_identity_leaves_out_what_cannot_change_a_result() -> None:
    plain = identity_of(TrainConfig())
    assert not {"log_steps", "checkpoint_steps", "keep_checkpoints", "loader_workers"} & set(plain)
    assert {"epochs", "documents_per_batch", "loss", "optim"} <= set(plain)
    assert identity_of(TrainConfig(log_steps=1)) == plain
    assert identity_of(TrainConfig(epochs=6)) != plain
    assert identity_of(TrainConfig(optim=OptimConfig(sgdr_cycles=4))) != plain


def test_sections_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().seed = 4  # type: ignore[misc]


def test_a_section_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    """YAML would take the last and forget the first without a word."""
    text = "train:\n  epochs: 3\nseed: 1\ntrain:\n  labels: shortlist\n"
    with pytest.raises(ConfigError, match=r"train stands in line 1 and in line 4; keep one"):
        load_config(write(tmp_path, "a.yaml", text))
    with pytest.raises(ConfigError, match=r"epochs stands in line 2 and in line 3"):
        load_config(write(tmp_path, "b.yaml", "train:\n  epochs: 3\n  epochs: 4\n"))


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(None, ["data.path=~/notes.jsonl", "name=a~/b"])
    assert config.data.path == f"{tmp_path}/notes.jsonl"
    assert config.name == "a~/b"


def test_a_best_metric_that_is_not_measured_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"best_metric is p@7, .* or choose one of: p@1, p@3"):
        load_config(None, ["train.best_metric=p@7", "evaluate.ks=[1,3]"])
    assert load_config(None, ["train.best_metric=p@7", "evaluate.ks=[7]"]).evaluate.ks == (7,)
