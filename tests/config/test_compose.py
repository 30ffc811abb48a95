"""The config files: each option fits the schema, each key is explained, and what wins over what."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

import safealign
from safealign.config import SourceConfig, TrainConfig, compose, conf_dir, load_option, to_yaml
from safealign.config.composing import decoding_changes
from safealign.config.groups import CandidatesConfig, MixConfig, RankerFitConfig, SamplingConfig
from safealign.config.overrides import all_groups, groups_in, known_keys, options_of
from safealign.config.roots import ROOTS
from safealign.data.mixing import MixSettings
from safealign.decoding.options import DecodingOptions
from safealign.ranking import CandidateSettings, FitSettings
from safealign.sampling import SamplingSettings

GROUPS = groups_in("config")
# What an option needs beside its name.
NEEDS = {"model=custom": ["model.path=x"], "data=jsonl": ["data.path=x.jsonl"]}
ROOT_NEEDS = {"config": [], "export": ["run=x"], "sweep": ["folder=x"], "launch": []}
ROOT_NEEDS |= {name: ["model=x"] for name in ("evaluate", "chat", "serve")}


@pytest.mark.parametrize("choice", [f"{group}={option}" for group in GROUPS for option in options_of(group)])
def test_every_option_fits_the_schema(choice: str) -> None:
    assert isinstance(compose([choice, *NEEDS.get(choice, [])]), TrainConfig)


@pytest.mark.parametrize("recipe", options_of("recipe"))
@pytest.mark.parametrize("model", options_of("model"))
def test_every_recipe_composes_with_every_model(recipe: str, model: str) -> None:
    config = compose([f"+recipe={recipe}", f"model={model}", *NEEDS.get(f"model={model}", [])])
    assert config.name == recipe
    assert config.run_dir == f"outputs/{recipe}"


@pytest.mark.parametrize("name", ROOTS)
def test_every_command_has_a_config(name: str) -> None:
    assert isinstance(compose(ROOT_NEEDS[name], name), ROOTS[name])


def test_all_groups_are_chosen_by_default_except_recipe() -> None:
    assert set(all_groups()) - set(GROUPS) - set(groups_in("launch")) == {"recipe"}
    config = compose()
    assert (config.deepspeed.name, config.defense.name) == ("none", "none")


def _documented(path: Path) -> set[str]:
    """Dotted keys of a YAML file that have a comment of their own on the line above."""
    found: set[str] = set()
    parents: list[tuple[int, str]] = []
    explained = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip().startswith("#"):
            explained = True
            continue
        match = re.match(r"( *)([\w]+):", line)
        if match:
            while parents and parents[-1][0] >= len(match[1]):
                parents.pop()
            parents.append((len(match[1]), match[2]))
            if explained:
                found.add(".".join(name for _, name in parents))
        explained = False
    return found


def _leaves(schema: type, prefix: str = "") -> set[str]:
    hints = get_type_hints(schema)
    found: set[str] = set()
    for spec in fields(schema):
        found.add(f"{prefix}{spec.name}")
        if is_dataclass(hints[spec.name]):
            found |= _leaves(hints[spec.name], f"{prefix}{spec.name}.")
    return found


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "debug"])
def test_every_key_of_a_group_is_explained(group: str) -> None:
    explained = set().union(*(_documented(file) for file in (conf_dir() / group).glob("*.yaml")))
    assert not _leaves(get_type_hints(TrainConfig)[group]) - explained


@pytest.mark.parametrize("name", ROOTS)
def test_every_key_of_a_root_is_explained(name: str) -> None:
    own = {key for key in known_keys(name) if key.split(".")[0] not in groups_in(name)}
    assert not own - _documented(conf_dir() / f"{name}.yaml")


@pytest.mark.parametrize("file", sorted(conf_dir().rglob("*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_file_opens_with_a_comment(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("recipe", options_of("recipe"))
def test_a_recipe_opens_with_its_command(recipe: str) -> None:
    lines = (conf_dir() / "recipe" / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1] == f"# python -m safealign.train +recipe={recipe}"
    assert (conf_dir().parent / "recipes" / recipe / "README.md").is_file()


def test_source_options_are_explained_in_the_data_file() -> None:
    text = (conf_dir() / "data" / "default.yaml").read_text(encoding="utf-8")
    assert all(f"`{spec.name}`" in text for spec in fields(SourceConfig))


@pytest.mark.parametrize("overrides", [["+recipe=llama_lora", "debug=smoke"], ["debug=smoke", "+recipe=llama_lora"]])
def test_smoke_wins_over_the_recipe(overrides: list[str]) -> None:
    config = compose(overrides)
    assert (config.name, config.run_dir) == ("smoke", "outputs/smoke")
    assert config.model.name == "tiny_random"
    assert config.suite.name == "smoke"
    assert config.trainer.max_steps > 0


def test_the_command_line_wins_over_smoke() -> None:
    config = compose(["+recipe=llama_lora", "debug=smoke", "trainer.max_steps=7", "suite=none", "run_dir=here"])
    assert (config.trainer.max_steps, config.suite.name, config.run_dir) == (7, "none", "here")


def test_the_recipe_wins_over_the_groups_and_root(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    text = "defaults: [{override /adapter: none}, _self_]\nname: mine\ntrainer: {epochs: 9}\n"
    (tmp_path / "recipe" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    config = compose(["+recipe=mine"], config_dir=tmp_path)
    assert (config.name, config.adapter.name, config.trainer.epochs) == ("mine", "none", 9.0)
    assert compose(["+recipe=mine", "adapter=lora"], config_dir=tmp_path).adapter.name == "lora"


def test_a_suite_brings_its_attacks() -> None:
    assert compose(["suite=table"]).attack.prefill_tokens == [5, 10, 40]
    assert compose(["suite=table", "attack=quick"]).attack.prefill_tokens == [10]
    assert compose(["model=x", "suite=table"], "evaluate").attack.name == "table"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B"),
        ("gpt2", "gpt2"),
        ("./my model/a=b", "a=b"),
        ("it's/odd", "odd"),
    ],
)
def test_model_takes_a_hub_id_or_a_path(value: str, name: str) -> None:
    model = compose([f"model={value}"]).model
    assert (model.path, model.name) == (value, name)


def test_a_key_after_the_model_shorthand_still_counts() -> None:
    assert compose(["model=org/m", "model.name=short", "model.dtype=fp32"]).model.name == "short"


@pytest.mark.parametrize("name", ["evaluate", "chat", "serve"])
def test_model_is_a_path_where_an_export_is_taken(name: str) -> None:
    config = compose(["model=outputs/x/export", "model.dtype=fp32"], name)
    assert (config.model.path, config.model.dtype) == ("outputs/x/export", "fp32")


def test_one_option_of_a_group() -> None:
    assert load_option("defense", "undefended").kind == "base"
    training = load_option("defense", "plain_sft").training
    assert compose(["+recipe=llama_lora", *training]).safety.lambda_cls == 0


def test_written_config_composes_to_itself(tmp_path: Path) -> None:
    config = compose(["+recipe=llama_lora", "debug=smoke"])
    text = to_yaml(config)
    assert "${" not in text
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "again.yaml").write_text(f"# @package _global_\n{text}")
    assert compose(["+recipe=again"], config_dir=tmp_path) == config


def test_every_key_is_used() -> None:
    """A key that nobody reads is a promise that nobody keeps."""
    package = Path(safealign.__file__).parent
    files = [file for file in package.rglob("*.py") if "config" not in file.relative_to(package).parts]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    conf = "\n".join(file.read_text(encoding="utf-8") for file in conf_dir().rglob("*.yaml"))
    handed_on = set(re.findall(r"asdict\((?:\w+\.)*(\w+)\)", code)) | {"defense"}  # the latter through load_option

    alias = dict(re.findall(r"(\w+)(?:: \w+)? = config\.(?:\w+\.)*(\w+)$", code, flags=re.MULTILINE))

    def used(key: str) -> bool:
        *sections, leaf = key.split(".")
        owner = sections[-1] if sections else "config"
        names = [owner, "config", "settings", *(name for name, section in alias.items() if section == owner)]
        read = re.search(rf"\b(?:{'|'.join(names)})\.{leaf}\b", code)
        return bool(read or set(key.split(".")) & handed_on or f"${{{key}}}" in conf)

    assert sorted(key for name in ROOTS for key in known_keys(name) if not used(key)) == []


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MixConfig, MixSettings),
        (SamplingConfig, SamplingSettings),
        (CandidatesConfig, CandidateSettings),
        (RankerFitConfig, FitSettings),
    ],
    ids=["mix", "sampling", "candidates", "fit"],
)
def test_a_section_has_the_fields_of_the_settings_it_becomes(ours: type, theirs: type) -> None:
    assert {spec.name for spec in fields(ours)} == {spec.name for spec in fields(theirs)}


def test_decoding_keys_are_the_keywords_of_generate() -> None:
    values = yaml.safe_load((conf_dir() / "decoding" / "default.yaml").read_text(encoding="utf-8"))
    options = DecodingOptions()
    values["stop"] = tuple(values["stop"])
    assert values == {key: getattr(options, key) for key in values}


def test_decoding_changes_are_what_the_user_set_and_nothing_else() -> None:
    """The group's defaults must not replace the schedule that an export's thresholds were calibrated under."""
    config = compose(["model=x", "decoding.tau=2", "decoding.stop=[END]"], "chat")
    assert decoding_changes(config.decoding) == {"tau": 2, "stop": ["END"]}
    assert decoding_changes(compose(["model=x"], "serve").decoding) == {"seed": None}
