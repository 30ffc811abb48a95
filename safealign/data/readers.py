"""One small reader for each known data set: its own file format in, records out."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safealign.data.records import BENIGN, MALICIOUS, Message, Record

SHORT_ENGLISH = 1000  # characters: WritingBench tasks above it carry whole documents

_PLACEHOLDER = re.compile(r"\{\{\s*\w+\s*\}\}")
_CALCULATOR = re.compile(r"<<[^>]*>>")
_AIRT_LABELS = {
    "fairness_yes_no": BENIGN,  # opinions asked of everybody
    "airt_licensed_therapist": BENIGN,  # a person in need of advice
    "leakage": None,  # quotations and system prompts: harm depends on who asks
}
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Reader:
    """How to read one data set: the asset that holds it and the function that turns its file into records."""

    asset: str
    read: Callable[[Path], Iterator[Record]]
    note: str


def ask(prompt: str, response: str | None = None) -> tuple[Message, ...]:
    """A user turn, and the assistant's when there is one."""
    question = Message("user", prompt.strip())
    return (question,) if response is None else (question, Message("assistant", response.strip()))


def pair_of(record: Record) -> str | None:
    """Name that a record of a matched pair shares with its twin (for splits by pair), None for all others."""
    pair, mark, _ = (record.id or "").rpartition("#")
    return pair if mark else None


def _advbench(path: Path) -> Iterator[Record]:
    for where, row in csv_rows(path):
        yield Record(ask(row["goal"]), MALICIOUS, id=_id("advbench", where), where=where)


def _advbench_openings(path: Path) -> Iterator[Record]:
    for where, row in csv_rows(path):
        turns = ask(row["goal"], row["target"])
        yield Record(turns, MALICIOUS, MALICIOUS, id=_id("advbench", where), where=where, complete=False)


def _advbench_categories(path: Path) -> Iterator[Record]:
    for where, row in _seeds(path):
        category = "; ".join(row.get("harm_categories", ())) or None
        yield Record(ask(row["value"]), MALICIOUS, id=_id("advbench", where), category=category, where=where)


def _airt(folder: Path) -> Iterator[Record]:
    for path in sorted(folder.glob("*.prompt")):
        for where, row in _seeds(path):
            label = _AIRT_LABELS.get(path.stem, MALICIOUS)
            yield Record(ask(row["value"]), label, id=_id("airt", where), category=path.stem, where=where)


def _harmbench(path: Path) -> Iterator[Record]:
    for where, row in csv_rows(path):
        if row["FunctionalCategory"] == "standard":
            category, id_ = row["SemanticCategory"], f"harmbench/{row['BehaviorID']}"
            yield Record(ask(row["Behavior"]), MALICIOUS, id=id_, category=category, where=where)


def _uncensorbench(path: Path) -> Iterator[Record]:
    for where, row in _json_rows(path, "prompts"):
        turns = ask(row["prompt"], row["uncensored_response"])
        id_ = f"uncensorbench/{row['id']}"
        yield Record(turns, MALICIOUS, MALICIOUS, id=id_, category=row["topic"], where=where)


def _uncensorbench_refusals(path: Path) -> Iterator[Record]:
    for where, row in _json_rows(path, "prompts"):
        turns = ask(row["prompt"], row["censored_response"])
        id_ = f"uncensorbench/{row['id']}/refusal"
        yield Record(turns, MALICIOUS, BENIGN, id=id_, category=row["topic"], where=where)


def _alpaca(path: Path) -> Iterator[Record]:
    for where, row in _json_rows(path):
        prompt = "\n".join(
            part.strip() for part in (row["instruction"], row.get("input", "")) if part.strip()
        )
        yield _everyday("alpaca", where, ask(prompt), row.get("output", ""))


def _v1_sft(path: Path) -> Iterator[Record]:
    for where, row in jsonl_rows(path):
        turns = [_parts(turn) for turn in row["messages"]]
        yield _everyday("v1_sft", where, turns[:-1], turns[-1].content)


def _dpo(path: Path) -> Iterator[Record]:
    for where, row in _json_rows(path):
        turns = [
            Message(_ROLES.get(turn["from"], turn["from"]), turn["value"]) for turn in row["conversations"]
        ]
        yield _everyday("dpo", where, _filled(turns), row["chosen"]["value"])


def _kto(path: Path) -> Iterator[Record]:
    """Answers that people marked bad are left out: such a row is a prompt only."""
    for where, row in _json_rows(path):
        turns = _filled([Message(turn["role"], turn["content"]) for turn in row["messages"]])
        yield _everyday("kto", where, turns[:-1], turns[-1].content if row["label"] else "")


def _gsm8k(path: Path) -> Iterator[Record]:
    for where, row in _json_rows(path):
        answer = _CALCULATOR.sub("", row["chain_of_thought"]).replace("#### ", "The answer is ")
        yield _everyday("gsm8k", where, ask(row["text_clean"]), answer)


def _writingbench(path: Path) -> Iterator[Record]:
    for where, row in jsonl_rows(path):
        yield _everyday("writingbench", where, ask(row["query"]), "", row["domain1"])


def _writingbench_short_english(path: Path) -> Iterator[Record]:
    for record in _writingbench(path):
        letters = sum(character.isascii() for character in record.request)
        if len(record.request) < SHORT_ENGLISH and letters > 0.97 * len(record.request):
            yield record


def _overrefusal(folder: Path) -> Iterator[Record]:
    for path in sorted(folder.glob("*.json")):
        for where, row in _json_rows(path):
            yield Record(ask(row["text"]), BENIGN, id=row["id"], category=row["category"], where=where)


def _rho_refusal_pairs(folder: Path) -> Iterator[Record]:
    for path in sorted(folder.glob("*.json")):
        for where, row in _json_rows(path):
            for side, text, label in (
                ("benign", row["text"], BENIGN),
                ("harmful", row["harmful_version"], MALICIOUS),
            ):
                question, _, answer = text.partition("\n\n")
                id_ = f"rho_refusal_pairs/{row['id']}#{side}"
                judged = label if answer else None
                turns = ask(question, answer or None)
                yield Record(turns, label, judged, id=id_, category=row["domain"], where=where)


def _matched_pairs(path: Path) -> Iterator[Record]:
    for where, row in jsonl_rows(path):
        topic, _, number = row["id"].rpartition("_")
        side = row["metadata"]["type"]
        id_ = f"matched_pairs/{topic}_{number[1:]}#{side}"
        label = MALICIOUS if side == "harmful" else BENIGN
        yield Record(ask(row["input"]), label, id=id_, category=topic, where=where)


def _chitchat(path: Path) -> Iterator[Record]:
    """Two people's turns as user and assistant; nobody has judged them, so there is no label."""
    with path.open(encoding="utf-8") as file:
        conversations = json.load(file)
    for row, (name, conversation) in enumerate(conversations.items(), start=1):
        texts = ["\n".join(part["text"] for part in turn).strip() for turn in conversation["messages"]]
        turns = [
            Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts[: _first_empty(texts)])
        ]
        if turns:
            yield Record(tuple(turns), id=f"chitchat/{name}", where=f"{path.name}:{row}")


def _refusal_labels(folder: Path) -> Iterator[Record]:
    for path in sorted(folder.glob("*.csv")):
        for where, row in csv_rows(path):
            category = "refused" if row["human_score"].strip().lower() in ("1", "1.0", "true") else "answered"
            turns = ask(row["objective"], row["assistant_response"])
            yield Record(turns, id=_id("refusal_labels", where), category=category, where=where)


READERS: Mapping[str, Reader] = {
    "advbench": Reader("advbench", _advbench, "harmful prompts"),
    "advbench_openings": Reader(
        "advbench", _advbench_openings, "harmful prompts with the first words of an answer"
    ),
    "advbench_categories": Reader(
        "advbench_categories", _advbench_categories, "the same with harm categories"
    ),
    "airt": Reader("airt", _airt, "prompts of an AI red team, most of them harmful"),
    "harmbench_val": Reader("harmbench_val", _harmbench, "standard harmful behaviours, validation"),
    "harmbench_test": Reader("harmbench_test", _harmbench, "standard harmful behaviours, test"),
    "uncensorbench": Reader("uncensorbench", _uncensorbench, "harmful prompts with harmful answers"),
    "uncensorbench_refusals": Reader(
        "uncensorbench", _uncensorbench_refusals, "the same prompts with refusals"
    ),
    "alpaca": Reader("alpaca", _alpaca, "everyday instructions with answers"),
    "v1_sft": Reader("v1_sft", _v1_sft, "everyday conversations, most of them from alpaca"),
    "dpo": Reader("dpo", _dpo, "everyday conversations with the chosen answer"),
    "kto": Reader("kto", _kto, "everyday conversations, with the answer where people liked it"),
    "gsm8k": Reader("gsm8k", _gsm8k, "grade-school sums with worked answers"),
    "writingbench": Reader("writingbench", _writingbench, "writing tasks"),
    "writingbench_short_english": Reader(
        "writingbench", _writingbench_short_english, "the short English ones"
    ),
    "overrefusal": Reader("overrefusal", _overrefusal, "harmless prompts that sound dangerous"),
    "rho_refusal_pairs": Reader(
        "rho_refusal_pairs", _rho_refusal_pairs, "harmful and harmless twins with answers"
    ),
    "matched_pairs": Reader("matched_pairs", _matched_pairs, "harmful and harmless twins"),
    "chitchat": Reader("chitchat", _chitchat, "conversations between people, not judged"),
    "refusal_labels": Reader(
        "refusal_labels", _refusal_labels, "answers judged by people: refused or answered"
    ),
}


def jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """("file:line", parsed row) for every line that is not blank. Raises json.JSONDecodeError."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path.name}:{number}", json.loads(line)


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """("file:row", row) of a CSV with a header; comment lines (#) before the header are skipped."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header_at = next((n for n, line in enumerate(file) if not line.startswith("#")), 0)
        file.seek(0)
        for _ in range(header_at):
            file.readline()
        for number, row in enumerate(csv.DictReader(file), start=1):
            yield f"{path.name}:{number}", row


def _json_rows(path: Path, key: str | None = None) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8") as file:
        content = json.load(file)
    for number, row in enumerate(content[key] if key else content, start=1):
        yield f"{path.name}:{number}", row


def _seeds(path: Path) -> Iterator[tuple[str, Any]]:
    import yaml

    with path.open(encoding="utf-8") as file:
        content = yaml.safe_load(file)
    for number, row in enumerate(content["seeds"], start=1):
        yield f"{path.name}:{number}", row


def _everyday(
    name: str,
    where: str,
    prompt: tuple[Message, ...] | list[Message],
    answer: str,
    category: str | None = None,
) -> Record:
    """A harmless request. An empty answer, or one with unfilled placeholders, is left out: a prompt only."""
    usable = answer.strip() and not _PLACEHOLDER.search(answer)
    turns = (*prompt, Message("assistant", answer.strip())) if usable else tuple(prompt)
    judged = BENIGN if usable else None
    return Record(turns, BENIGN, judged, id=_id(name, where), category=category, where=where)


def _filled(turns: list[Message]) -> list[Message]:
    """Without an empty system turn, which says nothing."""
    return [turn for turn in turns if turn.role != "system" or turn.content.strip()]


def _parts(turn: Mapping[str, Any]) -> Message:
    return Message(turn["role"], "".join(part["value"] for part in turn["content"]).strip())


def _first_empty(texts: list[str]) -> int:
    return next((i for i, text in enumerate(texts) if not text), len(texts))


def _id(name: str, where: str) -> str:
    stem, _, row = where.rpartition(":")
    return f"{name}/{Path(stem).stem}/{row}"
