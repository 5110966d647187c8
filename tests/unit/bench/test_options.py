from __future__ import annotations

from pathlib import Path

import pytest

from agentmem.bench.options import Options, default_cache_dir
from agentmem.config import load_settings
from agentmem.errors import ConfigError


def test_options_become_settings_that_the_server_takes(tmp_path: Path) -> None:
    """The model, its format, threads and cache reach the server as settings."""
    settings = load_settings(None, {}, Options("smollm2", "bf16", 2, 1, tmp_path).settings())
    assert ("smollm2", "bf16", 2, tmp_path) == (settings.model.id, settings.model.dtype, settings.model.threads, settings.model.cache_dir)


def test_a_directory_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative model directory becomes absolute, since the server runs elsewhere."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "model") == Options("model").settings()["model.id"]


def test_a_wrong_option_is_named() -> None:
    """A dtype that does not exist is refused before anything starts."""
    with pytest.raises(ConfigError, match="model.dtype"):
        Options(dtype="fp8").settings()


def test_the_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """AGENTMEM_MODEL_CACHE_DIR wins over the default, and other variables do not matter."""
    default = default_cache_dir()
    monkeypatch.setenv("AGENTMEM_MODEL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("AGENTMEM_SERVER_PORT", "nonsense")
    assert (tmp_path, True) == (default_cache_dir(), default != tmp_path)
