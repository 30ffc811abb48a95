"""A base model that comes without a chat template trains, is exported and decodes with the plain one."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import answers_of, one_step

from safealign.modeling.loading import load_base
from safealign.modeling.tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_base_model_goes_the_whole_way(architecture: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.pad_token = None
    if architecture == "gpt_neox":
        tokenizer.eos_token = tokenizer.bos_token
    base = str(tmp_path / "base")
    tiny_model(architecture).save_pretrained(base)
    tokenizer.save_pretrained(base)
    model, loaded = load_base(base, chat_template="plain")
    run = one_step(model, loaded, tmp_path)
    assert run.moved("safety_token") and run.moved("lora_")
    p, answers = answers_of(run.live())
    for merge in (True, False):
        again = run.reloaded(tmp_path / f"export-{merge}", merge, base)
        assert again.tokenizer.chat_template == loaded.chat_template
        assert answers_of(again)[0] == pytest.approx(p, abs=1e-4)
        assert answers_of(again)[1] == answers
