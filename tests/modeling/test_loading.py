"""Base models by folder, their chat template, and the digest that ties an adapter to its base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safealign.errors import ConfigError
from safealign.modeling.loading import load_base, load_folder, weights_digest
from safealign.modeling.tiny import tiny_model


def test_a_base_is_loaded_by_folder_in_eval_mode(bases) -> None:
    lm, tokenizer = load_base(str(bases["llama"]), attn="eager", dtype=torch.bfloat16)
    assert not lm.training
    assert lm.dtype is torch.bfloat16
    assert lm.config._attn_implementation == "eager"
    assert tokenizer.chat_template


def test_a_template_may_be_given_as_text_or_as_a_file(bases, tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (tmp_path / "template.jinja").write_text(text)
    for given in (text, str(tmp_path / "template.jinja")):
        assert load_base(str(bases["llama"]), chat_template=given)[1].chat_template == text


def test_a_base_without_a_template_is_refused_with_the_key(tmp_path: Path) -> None:
    from safealign.modeling.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.chat_template"):
        load_base(str(tmp_path))


def test_the_digest_is_the_base_models_whatever_is_attached(build, bases) -> None:
    expected = weights_digest(load_folder(bases["llama"], torch.float32)[0])
    assert weights_digest(build().lm) == expected
    assert weights_digest(build(adapter=True).lm.get_base_model()) == expected
    assert weights_digest(load_folder(bases["llama"], torch.bfloat16)[0]) == expected
    assert weights_digest(load_folder(bases["other"], torch.float32)[0]) != expected
