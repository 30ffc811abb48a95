"""What `safealign.validate` looks at for the pretraining stage: config, documents, model, one packed row, time."""

from __future__ import annotations

from itertools import islice

from rich.console import Console

from safealign.config.roots import TrainConfig
from safealign.data.records import BENIGN
from safealign.data.rendering import Renderer
from safealign.training.carrying import carried_problems
from safealign.training.checks import config_notes, config_problems, model_problems
from safealign.training.document_data import DocumentData, document_faults, prepare_documents
from safealign.training.document_stream import DocumentStream
from safealign.training.examples import Example
from safealign.training.labelling import labeller
from safealign.training.packing import packed, packed_example, parts_of
from safealign.training.pipeline import load_model, sayer
from safealign.training.stages import PRETRAINING
from safealign.training.validating import attempt, show_estimates
from safealign.training.viewing import show

_SHOWN, _SHOWN_TOKENS = 3, 30
_TIMED = 64  # rows that the estimate is measured on


def validate_documents(config: TrainConfig, console: Console) -> list[str]:
    """Every problem of config, documents and model; prints notes, a packed row and an estimate when there is none.

    No guard runs: documents that it has not judged before count as without a label.
    """
    problems = [*config_problems(config), *carried_problems(config), *document_faults(config)]
    for note in config_notes(config):
        console.print(f"note: {note}", highlight=False)
    loaded = attempt(lambda: load_model(config), None, problems)
    if loaded is not None:
        problems += model_problems(config, loaded[0])
    if problems or loaded is None:
        return problems
    model, renderer = loaded
    labels = attempt(lambda: labeller(config, only_cached=True), None, problems)
    if labels is None:
        return problems
    data = attempt(lambda: prepare_documents(config, renderer, sayer(console), labels), None, problems)
    if data is not None and not problems:
        _show_row(config, data.stream, renderer, console)
        rows, counts = {PRETRAINING: _timed(config, data)}, {PRETRAINING: data.n_rows or 0}
        show_estimates(config, model, renderer, rows, counts, console)
    return problems


def _show_row(config: TrainConfig, stream: DocumentStream, renderer: Renderer, console: Console) -> None:
    """The beginnings of a few benign documents, packed; harmful texts are never shown, nor any that nobody judged."""
    benign = (document for document in stream.documents() if document.label == BENIGN)
    parts = [parts_of(document, renderer, _SHOWN_TOKENS)[0] for document in islice(benign, _SHOWN)]
    if not parts:
        console.print("no document is labelled benign (yet), so none is shown")
        return
    row = next(packed(parts, _SHOWN * _SHOWN_TOKENS))
    show(packed_example(row, config.safety.placement, "of packed documents"), renderer, console)


def _timed(config: TrainConfig, data: DocumentData) -> list[Example]:
    return [packed_example(row, config.safety.placement) for row in islice(iter(data.train), _TIMED)]
