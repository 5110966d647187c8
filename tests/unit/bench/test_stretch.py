from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.tiny import save_model

from agentmem.bench.options import Options
from agentmem.bench.reference import Reference
from agentmem.bench.stretch import stretched, trained_length
from agentmem.errors import InvalidInput


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    return Options(str(save_model(folder / "model")), "fp32", 1, 1, folder / "cache")


def test_a_model_that_is_long_enough_stays(options: Options, tmp_path: Path) -> None:
    """Nothing is made where the trained length suffices."""
    assert options == stretched(options, trained_length(options), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_stretched_model_has_the_same_weights_and_a_longer_context(options: Options, tmp_path: Path) -> None:
    """Only the length that the config claims differs; the original is as it was."""
    before = trained_length(options)
    longer = stretched(options, before + 1000, tmp_path / "copy")
    assert (before, before + 1000) == (trained_length(options), trained_length(longer))
    one, other = Reference.load(options), Reference.load(longer)
    assert before + 1000 == other.handle.max_context
    assert one.generate([4, 5, 6], 4).token_ids == other.generate([4, 5, 6], 4).token_ids


def test_a_config_without_a_length_is_refused(tmp_path: Path) -> None:
    """Where nothing says how long the model was trained, nothing can be stretched."""
    folder = save_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="max_position_embeddings"):
        trained_length(Options(str(folder), "fp32", 1, 1, tmp_path / "cache"))
