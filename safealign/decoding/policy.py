"""What is said when a row refuses: the trigger of `medium`, the fixed refusal of `high`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

DEFAULT_TRIGGER = "Sorry, I cannot fulfill your request because"
DEFAULT_REFUSAL = "Sorry, I cannot help with that."


class TriggerEncoder(Protocol):
    """What turns refusal text into token ids (the Renderer of the model's chat template)."""

    def trigger_ids(self, trigger: str, *, mid_answer: bool) -> list[int]:
        """Ids of `trigger` at the start of an answer, or after a blank line in the middle of one."""
        ...


@dataclass(frozen=True)
class RefusalTexts:
    """The texts that interventions insert; `trigger` is continued by the model, `refusal` ends the answer."""

    trigger: str = DEFAULT_TRIGGER
    refusal: str = DEFAULT_REFUSAL


class Policy:
    """Encodes the refusal texts once, for both places where they can stand."""

    def __init__(self, encoder: TriggerEncoder, texts: RefusalTexts) -> None:
        self._ids = {
            (text, mid): tuple(encoder.trigger_ids(text, mid_answer=mid))
            for text in (texts.trigger, texts.refusal)
            for mid in (False, True)
        }
        self.texts = texts

    def trigger_ids(self, *, mid_answer: bool) -> tuple[int, ...]:
        """Ids of the trigger (`medium`)."""
        return self._ids[self.texts.trigger, mid_answer]

    def refusal_ids(self, *, mid_answer: bool) -> tuple[int, ...]:
        """Ids of the fixed refusal (`high`)."""
        return self._ids[self.texts.refusal, mid_answer]
