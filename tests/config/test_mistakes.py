"""What is said about a mistake: every one at once, each with where it is and its nearest match."""

from __future__ import annotations

from pathlib import Path

import pytest

from safealign.config import compose
from safealign.config.composing import examine
from safealign.config.fields import nearest
from safealign.errors import ConfigError

MISTAKES = [
    ("config", "trainer.epoch=1", "trainer.epochs"),
    ("config", "learning_rate=1", "trainer.learning_rate"),
    ("config", "lambda_cls=1", "safety.lambda_cls"),
    ("config", "+safety.head.layer=[1]", "safety.head.layers"),
    ("config", "trainr.epochs=1", "trainer.epochs"),
    ("config", "modl=tiny_random", "model"),
    ("config", "model=smolm2_135m", "smollm2_135m"),
    ("config", "model=tiny-random", "tiny_random"),
    ("config", "+recipe=lama_lora", "llama_lora"),
    ("config", "+recip=llama_lora", "recipe"),
    ("config", "logger=wandbb", "wandb"),
    ("config", "safety.placement=apend", "append"),
    ("config", "decoding.dependency=hi", "high"),
    ("config", "safety.head.pool=[row,meen]", "mean"),
    ("evaluate", "suite=tabel", "table"),
    ("evaluate", "decoding.theta_querry=0.5", "decoding.theta_query"),
    ("export", "merged=true", "merge"),
    ("chat", "modell=x", "model"),
    ("serve", "max_tokens=5", "max_new_tokens"),
]


@pytest.mark.parametrize(("command", "override", "meant"), MISTAKES)
def test_the_nearest_match_is_named(command: str, override: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        compose([override], command)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.epochs=many", "trainer.epochs=many: Value 'many'"),
        ("trainer.batch_size=0", "trainer.batch_size=0: must be at least 1"),
        ("trainer.learning_rate=0", "must be greater than 0"),
        ("data.val_fraction=2", "must be at least 0 and at most 0.9"),
        ("decoding.theta_query=auto", "must be a number or calibrated"),
        ("decoding.theta_query=1.5", "less than 1"),
        ("decoding.theta_window=true", "must be a number"),
        ("safety.head.layers=[0.5,7]", r"safety.head.layers\[1\]=7.0"),
        ("data.leak_check={enabeld: true}", "enabeld"),
        ("data.sources=[{sorce: x}]", "sorce"),
        (
            "data.sources=[{source: x, label: bad}]",
            r"data.sources\[0\].label=bad: must be one of benign, malicious",
        ),
        ("data=jsonl", "data.path: a value is needed; give data.path=…"),
        ("model=custom", "model.path: a value is needed"),
        ("recipe=llama_lora", r"write \+recipe=llama_lora"),
        ("a=b=c(", "cannot be read"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    overrides = ["trainer.epoch=1", "model=smolm2_135m", "trainer.batch_size=x", "safety.placement=apend"]
    config, problems = examine(overrides)
    assert config is not None
    assert len(problems) == 4
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert all(problem in str(caught.value) for problem in problems)


def test_a_typo_inside_a_recipe_names_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# @package _global_\ntrainer: {epoch: 3}\n")
    with pytest.raises(ConfigError, match=r"recipe/mine.*'trainer.epoch'; did you mean 'trainer.epochs'"):
        compose(["+recipe=mine"], config_dir=tmp_path)


def test_a_bad_value_inside_a_recipe_names_its_key(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# @package _global_\ntrainer: {epochs: many}\n")
    with pytest.raises(ConfigError, match=r"recipe/mine.*trainer.epochs: .*'many'"):
        compose(["+recipe=mine"], config_dir=tmp_path)


def test_a_missing_config_dir_is_said() -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        compose([], config_dir="no/where")


def test_a_group_of_another_command_is_refused() -> None:
    with pytest.raises(ConfigError, match="no group 'trainer'"):
        compose(["model=x", "trainer=default"], "evaluate")


@pytest.mark.parametrize("key", ["+suite.ablations.mine={tau: 1}", "data.sources.0.limit=3"])
def test_free_mappings_and_lists_take_any_key(key: str) -> None:
    assert examine([key])[1] == []


def test_nothing_alike_is_not_guessed() -> None:
    assert nearest("xyzzy", ["model", "trainer.epochs"]) is None
