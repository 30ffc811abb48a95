"""How well does a ranker choose, and what does it cost? Everything beside a random pick and the best possible one.

    python -m benchmarks.ranking [model.path=outputs/llama_lora/export] [overrides of +recipe=srr …]

Its own keys: `parts=accuracy,depths,kinds,best_of,cost` (any of them), `sets=…` and `benign=…` (data sets of malicious
and of benign requests), `requests=150` of each malicious set, `train=75` lists of each that rankers learn from (half of
the lists where there are fewer than twice as many), `benign_requests=400` and `benign_train=270` of each benign set,
`seeds=3`, `prompts=100` of each evaluation set, `best_of=8`, `tokens=48`, `rounds=9` of timing. Rankers are trained
here, on the model's own answers.

- accuracy: by data set, and transfer between them; benign lists are in every training set, and a test of their own.
- depths: last token against mean, at seven depths. kinds: listwise, pointwise, our safety head, and both together.
- best_of: attack success under direct, prefilled and wrapped requests, and refusals of benign ones.
- cost: seconds for m answers with the prompt fed once, with and without choosing, and with the prompt fed m times;
  medians (quartiles) of interleaved rounds, ratios within a round.

Every row is written to `run_dir/ranking.json` as it is found (figures, no texts); what is there already for the same
model and settings is not measured again, so parts can be run one by one. `ranking.md` and `ranking.png` show it all.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.ranking_best_of import attacked, head_scorer, outcomes, rates
from benchmarks.ranking_lists import (
    BENIGN_SETS,
    DEPTHS,
    EVALUATED,
    MALICIOUS_SETS,
    POOLS,
    DataSet,
    load_data_sets,
    parted,
)
from benchmarks.ranking_page import write_page
from safealign.commands import run_command
from safealign.config.roots import TrainConfig
from safealign.data.records import BENIGN, MALICIOUS
from safealign.data.templates import load_templates
from safealign.data.wrapping import generic_templates, split
from safealign.evaluation.attacks import DirectAttack, PrefillAttack, WrappedAttack
from safealign.evaluation.job import machine
from safealign.evaluation.metrics.binomial import wilson
from safealign.evaluation.metrics.rates import Rate
from safealign.evaluation.sets import load_set
from safealign.files import write_text
from safealign.model import SafeModel
from safealign.modeling.identity import guarded_digest
from safealign.ranking import Fitted, RankerSettings, StateList, fit_ranker, picks, score_with, unaided
from safealign.ranking.picking import Score
from safealign.ranking.scorers import RankerScorer, Scorer
from safealign.training.ranker_data import fit_settings, ranker_settings
from safealign.training.ranker_job import base_model

PARTS = ("accuracy", "depths", "kinds", "best_of", "cost")
COUNTS = (1, 2, 4, 8, 16)
DEFAULTS = {
    "parts": ",".join(PARTS),
    "sets": ",".join(MALICIOUS_SETS),
    "benign": ",".join(BENIGN_SETS),
    "requests": "150",
    "train": "75",
    "benign_requests": "400",
    "benign_train": "270",
    "seeds": "3",
    "prompts": "100",
    "best_of": "8",
    "tokens": "48",
    "rounds": "9",
}


@dataclass
class Study:
    """One model's figures; `results` by part and row, written down after each."""

    config: TrainConfig
    own: dict[str, str]
    console: Console
    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    @cached_property
    def model(self) -> SafeModel:
        """The model whose answers are chosen among."""
        return base_model(self.config)

    @cached_property
    def data(self) -> dict[str, DataSet]:
        """Every data set's lists."""
        names = dict.fromkeys(self.own["sets"].split(","), MALICIOUS) | {name: BENIGN for name in self.benign}
        counts = {MALICIOUS: int(self.own["requests"]), BENIGN: int(self.own["benign_requests"])}
        return load_data_sets(self.config, self.model, names, counts, self.say)

    @property
    def benign(self) -> list[str]:
        """Data sets of benign requests."""
        return [name for name in self.own["benign"].split(",") if name]

    @property
    def malicious(self) -> list[str]:
        """Data sets of malicious requests."""
        return self.own["sets"].split(",")

    @property
    def seeds(self) -> range:
        """Seeds of splits and rankers."""
        return range(int(self.own["seeds"]))

    @cached_property
    def key(self) -> str:
        """What kept rows must agree in."""
        parts = self.model.parts
        lm: Any = self.model.hf if parts is None else parts.lm
        content = [guarded_digest(lm), asdict(self.config.ranker), asdict(self.config.data)]
        content += [{**self.own, "parts": ""}, machine()]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]

    @property
    def path(self) -> Path:
        """Where rows are kept."""
        return Path(self.config.run_dir) / "ranking.json"

    def say(self, line: str) -> None:
        """Prints a line."""
        self.console.print(line, highlight=False)

    def resume(self) -> None:
        """Takes over what was found before, if it is of the same model and settings."""
        if not self.path.is_file():
            return
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            same = kept["key"] == self.key
        except (ValueError, KeyError, TypeError):
            same = False
        if same:
            self.results = kept["results"]
        else:
            self.say(f"{self.path} is of another model or other settings: it is measured again")

    def row(self, part: str, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """A row of a part, unless it is known."""
        rows = self.results.setdefault(part, {})
        if name in rows:
            return
        rows[name] = make()
        content = {"key": self.key, "machine": machine(), "settings": self.own, "results": self.results}
        write_text(self.path, json.dumps(content, indent=2, allow_nan=False) + "\n")
        self.say(f"  {part}, {name}: done")

    # ---- rankers -------------------------------------------------------------------------------------------------

    def sides(
        self, names: Sequence[str], seed: int, settings: RankerSettings, with_head: bool = False
    ) -> tuple[list[StateList], list[StateList]]:
        """Lists to learn from and others, of some data sets, at the depth and pool of `settings`."""
        train: list[StateList] = []
        test: list[StateList] = []
        for name in names:
            found = self.data[name]
            lists = found.lists(self.depth(settings.layer), settings.pool, with_head)
            wanted = self.own["benign_train" if name in self.benign else "train"]
            chosen, others = parted(found.groups, int(wanted), seed)
            train += [lists[i] for i in chosen]
            test += [lists[i] for i in others]
        return train, test

    def depth(self, layer: float) -> int:
        """Blocks up to a fraction of depth."""
        return self.model.extractor((layer,)).depths[0]

    def fit(self, train: Sequence[StateList], seed: int, settings: RankerSettings) -> Fitted:
        """A ranker that stops by every fifth of its own training lists: test lists decide nothing."""
        own = [one for index, one in enumerate(train) if index % 5]
        return fit_ranker(own, train[::5], settings, fit_settings(self.config), seed)

    @property
    def learnt_from(self) -> list[str]:
        """Data sets that rankers learn from outside `accuracy`: the prompts of `best_of` are not among them."""
        return [*[name for name in self.malicious if name != EVALUATED], *self.benign]

    # ---- parts ---------------------------------------------------------------------------------------------------

    def accuracy(self) -> None:
        """Each malicious data set (with the benign ones) as training set, every data set as test set."""
        settings = ranker_settings(self.config)
        for name in self.malicious:
            self.row("accuracy", name, lambda name=name: self._transfer(name, settings))  # type: ignore[misc]
        names = (*self.malicious, *self.benign)
        self.row("accuracy", "at random", lambda: {name: self._random(name, settings) for name in names})
        self.row("accuracy", "lists in a test", lambda: {name: self._tested(name, settings) for name in names})
        self.row("accuracy", "requests", lambda: {name: self.data[name].counts["requests"] for name in names})
        self.row("accuracy", "mixed lists", lambda: {name: len(self.data[name].groups) for name in names})

    def _transfer(self, name: str, settings: RankerSettings) -> dict[str, Any]:
        found: dict[str, list[float]] = {}
        if not self.sides([name], 0, settings)[0]:
            return dict.fromkeys((*self.malicious, *self.benign))
        for seed in self.seeds:
            train, _ = self.sides([name, *self.benign], seed, settings)
            score = score_with(self.fit(train, seed, settings).ranker)
            for other in (*self.malicious, *self.benign):
                _, test = self.sides([other], seed, settings)
                found.setdefault(other, []).append(picks(score, test).accuracy)
        return {other: over_seeds(values) for other, values in found.items()}

    def _random(self, name: str, settings: RankerSettings) -> dict[str, Any]:
        tests = [self.sides([name], seed, settings)[1] for seed in self.seeds]
        return over_seeds([picks(lambda one: [0.0] * len(one.good), test).random for test in tests])

    def _tested(self, name: str, settings: RankerSettings) -> int:
        return len(self.sides([name], 0, settings)[1])

    def depths(self) -> None:
        """Every depth and pool."""
        for pool in POOLS:
            for depth in sorted({self.depth(layer) for layer in DEPTHS}):
                layer = next(layer for layer in DEPTHS if self.depth(layer) == depth)
                settings = replace(ranker_settings(self.config), layer=layer, pool=pool)
                make = lambda s=settings, d=depth: {"depth": d, "pool": s.pool, **self._held_out(s)}  # noqa: E731
                self.row("depths", f"{depth} {pool}", make)

    def _held_out(self, settings: RankerSettings, with_head: bool = False) -> dict[str, Any]:
        by: dict[str, list[float]] = {}
        for seed in self.seeds:
            train, test = self.sides(self.learnt_from, seed, settings, with_head)
            _note(by, score_with(self.fit(train, seed, settings).ranker), test)
        return {name: over_seeds(values) for name, values in by.items()}

    def kinds(self) -> None:
        """Listwise against pointwise, with and without the head's score, and the head alone."""
        settings = ranker_settings(self.config)
        for kind in ("listwise", "pointwise"):
            chosen = replace(settings, kind=kind)
            self.row("kinds", kind, lambda s=chosen: self._held_out(s))  # type: ignore[misc]
            if self.model.parts is not None:
                name = f"{kind}, the head's score beside the states"
                self.row("kinds", name, lambda s=chosen: self._held_out(s, True))  # type: ignore[misc]
        if self.model.parts is not None:
            self.row("kinds", "safety head", lambda: self._head_alone(settings))

    def _head_alone(self, settings: RankerSettings) -> dict[str, Any]:
        by: dict[str, list[float]] = {}
        for seed in self.seeds:
            _, test = self.sides(self.learnt_from, seed, settings, with_head=True)
            _note(by, lambda one: one.answers[:, -1].tolist(), test)
        return {name: over_seeds(values) for name, values in by.items()}

    def best_of(self) -> None:
        """The same candidates for every scorer, under each attack and on each benign set."""
        n, offline = int(self.own["prompts"]), self.config.offline
        _, templates = split((*load_templates(offline=offline), *generic_templates()))
        prefill = PrefillAttack(10, self.model.tokenizer)
        jobs = [
            ("direct", "harmful", DirectAttack(), False),
            ("prefilled", "harmful", prefill, False),
            ("wrapped", "harmful", WrappedAttack(templates, max_words=self.config.data.mix.wrapper_words), False),
            ("benign", "benign", DirectAttack(), True),
            ("sounds harmful", "over_refusal", DirectAttack(), True),
        ]
        for name, of, attack, refusals in jobs:
            make = lambda of=of, attack=attack, refusals=refusals: self._chosen(  # noqa: E731
                attacked(load_set(of, n, offline), attack), refusals
            )
            self.row("best_of", name, make)

    @cached_property
    def rankers(self) -> dict[str, Scorer]:
        """Rankers of each kind and seed, by `kind/seed`, and the head."""
        settings, found = ranker_settings(self.config), head_scorer(self.model)
        lm = self.model.hf if self.model.parts is None else self.model.parts.lm
        for kind in ("listwise", "pointwise"):
            for seed in self.seeds:
                train, _ = self.sides(self.learnt_from, seed, settings)
                fitted = self.fit(train, seed, replace(settings, kind=kind))
                found[f"{kind}/{seed}"] = RankerScorer(fitted.ranker, lm)
        return found

    def _chosen(self, conversations: Sequence[Any], refusals: bool) -> dict[str, Any]:
        settings, drawn = ranker_settings(self.config), self.config.ranker.candidates
        found = rates(
            outcomes(
                self.model,
                conversations,
                self.rankers,
                self.model.extractor((settings.layer,), (settings.pool,)),
                best_of=int(self.own["best_of"]),
                refusals=refusals,
                temperature=drawn.temperature,
                top_p=drawn.top_p,
                max_new_tokens=int(self.own["tokens"]),
            )
        )
        row: dict[str, Any] = {}
        for kind in ("listwise", "pointwise"):
            flags: list[list[bool]] = [found[f"{kind}/{seed}"] for seed in self.seeds]  # type: ignore[misc]
            row[kind] = over_prompts(flags)
        for name in ("safety head", "first answer", "oracle"):
            if name in found:
                row[name] = Rate.of(found[name]).to_dict()  # type: ignore[arg-type]
        return row | {"random pick": {"value": found["random pick"], "n": len(conversations), "interval": [None, None]}}

    def cost(self) -> None:
        """Seconds for m answers to one request, chosen among or not, the prompt fed once or m times."""
        ranker = self.rankers["listwise/0"]
        (prompt,) = load_set("benign", 1, self.config.offline)
        for m in COUNTS[1:]:
            self.row("cost", f"m = {m}", lambda m=m: self._seconds(prompt.prompt, m, ranker))  # type: ignore[misc]

    def _seconds(self, messages: Any, m: int, ranker: Scorer) -> dict[str, Any]:
        tokens = int(self.own["tokens"])
        how: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": tokens, "min_new_tokens": tokens, "safety": False}
        model = self.model
        runs: dict[str, Callable[[], Any]] = {
            "one answer, s": lambda: model.generate(messages, **how),
            "prompt fed m times, s": lambda: model.generate_batch([messages] * m, **how),
            "fed once, s": lambda: model.generate(messages, best_of=m, ranker="random", **how),
            "and chosen, s": lambda: model.generate(messages, best_of=m, ranker=ranker, **how),
        }
        rounds = interleaved(runs, int(self.own["rounds"]))
        adds = [row["and chosen, s"] / row["fed once, s"] - 1 for row in rounds]
        return {name: spread([row[name] for row in rounds]) for name in runs} | {"choosing adds": spread(adds)}


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean, lowest and highest over seeds, ready for JSON; null where no seed had a list."""
    there = [value for value in values if not math.isnan(value)]
    middle = sum(there) / len(there) if there else None
    interval = [min(there), max(there)] if there else [None, None]
    return {"value": middle, "n": len(there), "interval": interval, "note": "lowest–highest, seeds: "}


def over_prompts(flags: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Rate over seeds and prompts, with Wilson's interval of the prompts alone: seeds judge the same candidates."""
    n = len(flags[0])
    share = sum(map(sum, flags)) / (len(flags) * n)
    return {"value": share, "n": n, "interval": list(wilson(share * n, n))}


def _note(by: dict[str, list[float]], score: Score, test: Sequence[StateList]) -> None:
    """Adds one seed's figures: all lists, those of each label, and those of answers that were given no opening."""
    parts = {"good picks": test} | {label: [one for one in test if one.label == label] for label in (MALICIOUS, BENIGN)}
    parts["without given openings"] = unaided(test)
    for name, lists in parts.items():
        found = picks(score, lists)
        by.setdefault(name, []).append(found.accuracy)
        if name in ("good picks", "without given openings"):
            by.setdefault(f"at random, {name}", []).append(found.random)


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int) -> list[dict[str, float]]:
    """Seconds of each run in each round, after one that is not counted; every round has an order of its own."""
    found: list[dict[str, float]] = []
    for index in range(rounds + 1):
        order = list(runs)
        random.Random(f"cost/{index}").shuffle(order)
        row = {}
        for name in order:
            started = time.perf_counter()
            runs[name]()
            row[name] = time.perf_counter() - started
        found.append(row)
    return found[1:]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles over rounds, ready for JSON."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3
    return {"value": middle, "n": len(values), "interval": [low, high], "note": "quartiles, rounds: "}


def study(config: TrainConfig, own: dict[str, str]) -> None:
    """Runs the parts asked for, and writes the page."""
    console = Console()
    wanted = own["parts"].split(",")
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        raise SystemExit(f"parts={','.join(unknown)}: choose some of {', '.join(PARTS)}")
    run = Study(config, own, console)
    run.resume()
    for name in wanted:
        console.rule(name)
        getattr(run, name)()
        note = f"`python -m benchmarks.ranking`, {config.model.path}, {machine()}; settings: {json.dumps(own)}."
        for path in write_page(Path(config.run_dir), run.results, note):
            run.say(f"written: {path}")


def main(arguments: Sequence[str]) -> int:
    """Takes its own keys out of the arguments; the rest is the config's."""
    given = dict(item.split("=", 1) for item in arguments if item.partition("=")[0] in DEFAULTS)
    rest = [item for item in arguments if item.partition("=")[0] not in DEFAULTS]
    argv = ["+recipe=srr", "run_dir=outputs/ranking", *rest]
    return run_command(lambda config: study(config, DEFAULTS | given), argv=argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
