"""The README.md of an export: what it is, how it was made, what its thresholds promise, and its limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safealign.files import write_text
from safealign.reporting.summary import Summary

METHOD = (
    "One learned **safety token** reads the request (and, during decoding, windows of the answer) at "
    "positions no text can occupy; a linear **safety head** turns its hidden states into a logit of harm. "
    "While the model writes, every token of the answer can attend to the newest verdict, and four "
    "decoding rules act on it: a request judged harmful is refused, a harmful turn in mid-answer is "
    "withdrawn and replaced by a refusal. The method is that of Li & Kim, *Safety Alignment Can Be Not "
    "Superficial With Explicit Safety Signals* (ICML 2025, arXiv:2505.17072), with this project's own "
    "definitions where the paper is silent."
)
PLAIN_LOAD = (
    "**Loaded with plain `transformers`, PEFT, vLLM or any other tool, this model runs without gate and "
    "decoding**: no safety token, no verdict, no interventions. What is left are the fine-tuned weights "
    "alone; the evaluation has a row for that."
)
RANKING = (
    "A **ranker** of {parameters} weights chooses among several answers of the model: it reads the hidden states of "
    "the instruction and of every candidate at one intermediate depth, lets them see each other in one encoder "
    "block, and takes the answer whose state is most like the instruction's. The method is that of Du et al., "
    "*Advancing LLM Safe Alignment with Safety Representation Ranking* (arXiv:2505.15710). The model's own weights "
    "are as they were."
)
SHARES = ("accuracy", "random", "oracle")
RANKING_LIMITS = (
    "A ranker cannot give what no candidate is: where all answers are harmful, so is the one that it chooses.",
    "It learnt from labels by rules or keywords, which see refusals and not harm, on texts in English.",
    "Its answers cost what the drawing of all candidates costs.",
)
FROZEN_METHOD = (
    "One **safety token** reads the request (and, during decoding, windows of the answer) at positions no "
    "text can occupy; a linear **safety head** turns hidden states into a logit of harm. The language model "
    "was left as it was, bit for bit: the head was fitted on its states, no text ever sees the token, and "
    "until the rules step in the answer is the bare model's. A request judged harmful is refused, a harmful "
    "turn in mid-answer is withdrawn and replaced by a refusal. The rules are those of Li & Kim, *Safety "
    "Alignment Can Be Not Superficial With Explicit Safety Signals* (ICML 2025, arXiv:2505.17072), without "
    "its training of the model."
)
FROZEN_PLAIN_LOAD = (
    "**Loaded with plain `transformers`, vLLM or any other tool, this is the base model and nothing more**: "
    "no verdict, no interventions."
)
LIMITS = (
    "The promise on false refusals holds for the distribution the thresholds were calibrated on; other "
    "sources are measured, not promised.",
    "Attack success is judged by rules that see refusals and empty answers, not harm; it overstates "
    "success on answers that are harmless or wrong.",
    "The refusal matcher and the training data are English.",
    "Attacks that know the safety head and optimise against it were not tried.",
    "Whoever holds the weights can leave the safety parts out.",
)


@dataclass(frozen=True)
class CardFacts:
    """What a card cannot read from `safety.json` and the summary.

    Attributes:
        name: of the export, the card's title.
        base: the base model's name, with its digest in `base_sha256` when known.
        licence: SPDX name of the licence the weights are under, that of the base model.
        command: what made it.
        data: one mapping per data set, with `name` and as many of `rows`, `licence`, `package`, `version`,
            `sha256`, `origin` as are known.
        adapter: True when the export is an adapter and not merged weights.
        reference: True when it holds no weights of the language model, and names its base.
    """

    name: str
    base: str
    licence: str = "apache-2.0"
    base_sha256: str = ""
    command: str = ""
    data: Sequence[Mapping[str, Any]] = ()
    adapter: bool = False
    reference: bool = False


def model_card(facts: CardFacts, safety: Mapping[str, Any], summary: Summary | None = None) -> str:
    """Text of the card.

    Args:
        facts: see `CardFacts`.
        safety: contents of `safety.json` (`head`, `placement`, `trigger`, `decoding`, `thresholds`,
        `calibration`).
        summary: the results; None when nothing was evaluated, and the card says so.
    """
    if safety.get("head") is None and safety.get("ranker") is not None:
        return _ranker_card(facts, safety)
    frozen = bool(safety.get("frozen"))
    method, plain_load = (FROZEN_METHOD, FROZEN_PLAIN_LOAD) if frozen else (METHOD, PLAIN_LOAD)
    sections = [
        _front_matter(facts),
        f"# {facts.name}\n\n{_what(facts, frozen)}\n\n{plain_load}",
        _use(facts),
        f"## Method\n\n{method}\n\n{_settings(safety)}",
        f"## Data\n\n{_data_table(facts.data)}",
        f"## Thresholds and what they promise\n\n{_thresholds(safety)}",
        *_ranking(safety),
        _results(summary),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in LIMITS),
    ]
    return "\n\n".join(sections) + "\n"


def _ranker_card(facts: CardFacts, safety: Mapping[str, Any]) -> str:
    """The card of an unchanged model with a ranker and no safety head."""
    digest = f" (weights sha256 `{facts.base_sha256}`)" if facts.base_sha256 else ""
    made = f", made by `{facts.command}`" if facts.command else ""
    limits = "\n".join(f"- {limit}" for limit in RANKING_LIMITS)
    sections = [
        _front_matter(facts),
        f"# {facts.name}\n\n`{facts.base}`{digest} as it was, with a ranker beside it{made}. Loaded with any other "
        "tool, it is the model alone.",
        *_ranking(safety),
        f"## Data\n\n{_data_table(facts.data)}",
        f"## Limits\n\n{limits}",
    ]
    return "\n\n".join(sections) + "\n"


def _ranking(safety: Mapping[str, Any]) -> list[str]:
    """What the ranker is, if there is one, how it is used, and how it chose on held-out requests."""
    ranker = safety.get("ranker")
    if ranker is None:
        return []
    training = ranker["training"]
    rows = [
        (name, row["n"], *(_share(row[key], row.get("interval") if key == "accuracy" else None) for key in SHARES))
        for name, row in training.get("held_out", {}).items()
    ]
    heading = ("requests, held out", "lists", "good picks", "at random", "best possible")
    used = (
        "```python\nimport safealign\n\nmodel = safealign.load(\"path/to/export\")\n"
        'messages = [{"role": "user", "content": "How do I bake bread?"}]\n'
        'out = model.generate(messages, best_of=8, ranker="srr")\n'
        "print(out.text, out.ranking.scores)\n"
        'print(model.rank(messages, ["Mix flour and water.", "I cannot help."]).order)\n```'
    )
    what = RANKING.format(parameters=f"{training['parameters']:,}" if "parameters" in training else "few")
    settings = _table(("setting", "value"), ranker["settings"].items())
    return [f"## Ranker\n\n{what}\n\n{used}\n\n{settings}\n\n{_table(heading, rows) if rows else ''}".rstrip()]


def _share(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" + (f" ({interval[0]:.1%}–{interval[1]:.1%})" if interval else "")


def write_model_card(
    folder: str | Path, facts: CardFacts, safety: Mapping[str, Any], summary: Summary | None = None
) -> Path:
    """Write the card as `README.md` of the export `folder`; returns its path."""
    return write_text(Path(folder) / "README.md", model_card(facts, safety, summary))


def _front_matter(facts: CardFacts) -> str:
    library = "peft" if facts.adapter else "transformers"
    return (
        f"---\nlicense: {facts.licence}\nlibrary_name: {library}\nbase_model: {facts.base}\n"
        "pipeline_tag: text-generation\ntags:\n- safety\n- safealign\n---"
    )


def _what(facts: CardFacts, frozen: bool) -> str:
    whole = "An unchanged copy of" if frozen else "A fine-tuned copy of"
    kind = "Safety parts for" if facts.reference else "An adapter for" if facts.adapter else whole
    digest = f" (weights sha256 `{facts.base_sha256}`)" if facts.base_sha256 else ""
    made = f", made by `{facts.command}`" if facts.command else ""
    return f"{kind} `{facts.base}`{digest} with an explicit safety signal{made}."


def _use(facts: CardFacts) -> str:
    return (
        "## Use\n\n```python\nimport safealign\n\n"
        f'model = safealign.load("path/to/{facts.name}")\n'
        'out = model.generate([{"role": "user", "content": "How do I bake bread?"}], max_new_tokens=128)\n'
        "print(out.text, out.refused, out.intervened_at)\n"
        'print(model.score([{"role": "user", "content": "How do I bake bread?"}]))  # p(malicious)\n```'
    )


def _settings(safety: Mapping[str, Any]) -> str:
    head = safety.get("head") or {}
    rows = [
        ("safety token's position", safety.get("placement")),
        ("head reads, as fractions of depth", _listed(head.get("layers"))),
        ("head pools", _listed(head.get("pool"))),
        ("windows see the request", safety.get("window_sees_query")),
        ("trigger of a refusal", safety.get("trigger")),
        *((f"decoding: {key}", value) for key, value in safety.get("decoding", {}).items()),
    ]
    return _table(("setting", "value"), [(key, value) for key, value in rows if value is not None])


def _data_table(data: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            item["name"],
            item.get("rows", "–"),
            item.get("licence", "unknown"),
            " ".join(str(item[key]) for key in ("package", "version") if item.get(key))
            or item.get("origin", "–"),
            f"`{item['sha256']}`" if item.get("sha256") else "–",
        )
        for item in data
    ]
    return (
        _table(("data", "rows", "licence", "from", "sha256"), rows) if rows else "No data set was recorded."
    )


def _thresholds(safety: Mapping[str, Any]) -> str:
    calibration = safety.get("calibration", {})
    details = dict(calibration.get("thresholds", {}))
    details |= calibration.get("prefix", {}).get("thresholds", {})
    rows = []
    for name, logit in safety.get("thresholds", {}).items():
        note = details.get(name, {}).get("note", "not calibrated")
        rows.append((name, "off" if logit is None else f"{logit:.3f}", note))
    if not rows:
        reason = f" ({calibration['note']})" if calibration.get("note") else ""
        return f"No threshold is set: interventions are off until `generate` is given thresholds{reason}."
    parts = [_table(("threshold", "logit", "what it promises"), rows)]
    if calibration.get("note"):
        parts.append(f"Together: {calibration['note']}.")
    if calibration.get("distribution"):
        parts.append(f"Calibrated on {calibration['distribution']}.")
    if not calibration.get("carries_promise", True):
        parts.append("**The data at hand were too few for the promise that was asked for.**")
    return "\n\n".join(parts)


def _results(summary: Summary | None) -> str:
    if summary is None:
        return "## Results\n\nThis export was not evaluated."
    grids = [grid.to_markdown(3) for grid in (*summary.areas.values(), *summary.grids.values()) if grid.cells]
    notes = "\n".join(f"- {note}" for note in summary.notes)
    made = f"From `{summary.command}`. " if summary.command else ""
    return "\n\n".join(
        [f"## Results\n\n{made}Each cell: value (count; 95 % interval).", *grids, notes]
    ).rstrip()


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _listed(values: Iterable[Any] | None) -> str | None:
    return None if values is None else ", ".join(str(value) for value in values)
