"""What rendered examples depend on, as one hash: records, tokenizer, template, settings, seed, and the code itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import safealign.data
import safealign.layout
from safealign.data.records import Message, Record
from safealign.data.rendering import Renderer
from safealign.training.examples import ExampleSettings


def example_key(records: Sequence[Record], renderer: Renderer, settings: ExampleSettings, seed: int) -> str:
    """40 hexadecimal digits; the order of the records counts, since it decides about what is drawn."""
    digest = hashlib.sha256(_code().encode())
    for part in (_tokenizer(renderer), asdict(settings), seed, *(record.to_dict() for record in records)):
        digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:40]


@lru_cache(maxsize=1)
def _tokenizer(renderer: Renderer) -> str:
    """Its rules and special tokens, its template, and what that makes of two turns: some write today's date."""
    dated = renderer.template.render((Message("user", "a"), Message("assistant", "b")), generation_prompt=False)
    return json.dumps([*renderer.identity, dated.text], sort_keys=True)


@lru_cache(maxsize=1)
def _code() -> str:
    """A hash of the files that make examples of records, and the version of the library beneath them."""
    digest = hashlib.sha256(version("tokenizers").encode())
    for path in _files():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    for room in (safealign.data, safealign.layout):
        yield from sorted(Path(str(room.__file__)).parent.glob("*.py"))
    yield from (Path(__file__).with_name(name) for name in ("examples.py", "kept_examples.py"))
