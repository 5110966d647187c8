from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny import save_model

from agentmem.bench.options import Options
from agentmem.bench.reference import Reference, load_text, prepare_model
from agentmem.errors import InternalError


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    return Options(str(save_model(folder / "model")), "fp32", 1, 1, folder / "cache")


@pytest.fixture(scope="module")
def reference(options: Options) -> Reference:
    return Reference.load(options)


def test_replies_are_as_long_as_asked_whatever_the_model_says(reference: Reference) -> None:
    """Neither the end token nor a length in the model's generation config cuts a reply; every first choice is the greedy one."""
    prompt = list(range(4, 20))
    replies = [reference.generate([*prompt, extra], 24) for extra in range(4, 12)]
    assert [24] * 8 == [len(reply.token_ids) for reply in replies]
    with torch.inference_mode():
        first = int(reference.handle.model(torch.tensor([[*prompt, 4]])).logits[0, -1].argmax())
    assert first == replies[0].token_ids[0]
    assert 0 < replies[0].first_token_s < replies[0].last_token_s


def test_the_models_own_generation_settings_do_not_apply(options: Options) -> None:
    """What the model's makers recommend (an end token that always comes, penalties) is not part of the comparison."""
    handle = Reference.load(options).handle
    handle.model.generation_config.eos_token_id = list(range(handle.vocab_size))
    assert 8 == len(Reference(handle).generate([4, 5, 6], 8).token_ids)


def test_a_short_reply_is_an_error(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison with fewer tokens than asked for would hide a difference."""
    real = reference._model.generate
    monkeypatch.setattr(reference._model, "generate", lambda *args, **given: real(*args, **given)[:, :-1])
    with pytest.raises(InternalError, match="3 tokens instead of 4"):
        reference.generate([4, 5, 6], 4)


def test_the_margin_is_the_lead_of_the_likeliest_token(reference: Reference) -> None:
    """It is the difference of the two largest logits."""
    with torch.inference_mode():
        top = reference.handle.model(torch.tensor([[4, 5, 6]])).logits[0, -1].topk(2).values
    assert float(top[0] - top[1]) == pytest.approx(reference.margin([4, 5, 6]), rel=1e-4)


def test_sizes_and_text_come_from_the_model(reference: Reference, options: Options) -> None:
    """Bytes of KV follow the shape (3 layers, 2 KV heads, 16 wide, K and V, 4 bytes); text is in the model's tokens."""
    assert 2 * 3 * 2 * 16 * 4 == reference.kv_bytes_per_token
    assert load_text(options).token_ids(5) == reference.text().token_ids(5)
    assert Path(options.model) == prepare_model(options, lambda _stage, _fraction: None)
