"""A chat template for models that come without one, made of what every tokenizer has.

Each turn is a line with its role, its text and the end-of-sequence token. That token is inserted by id and no text can
spell it (`rendering`), so a role line in a user's text never follows one: it cannot pass for a turn.
"""

from __future__ import annotations

from typing import Any

from safealign.errors import ConfigError

NAME = "plain"
_TEMPLATE = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}:\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


def plain_template(tokenizer: Any) -> str:
    """The template for this tokenizer. Raises ConfigError where it has no end-of-sequence token to close turns with."""
    if not tokenizer.eos_token:
        raise ConfigError(
            "model.chat_template=plain closes each turn with the tokenizer's end-of-sequence token, and this one has "
            "none: give a template of your own with model.chat_template=PATH_OR_TEXT"
        )
    return _TEMPLATE
