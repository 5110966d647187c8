from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from support.tiny import save_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from agentmem.engine import gguf
from agentmem.engine.gguf import convert_gguf
from agentmem.errors import InvalidInput, StorageFailed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def directories(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.is_dir() and path.name != "digests"]


def test_converted_weights_are_the_files_own(tiny: Path, cache: Path) -> None:
    """The directory holds fp32 weights equal to the file's, a config and a tokenizer that transformers loads."""
    directory = convert_gguf(tiny, cache)
    weights = load_file(directory / "model.safetensors")
    in_file = {tensor.name: tensor.data for tensor in GGUFReader(tiny).tensors}

    assert {torch.float32} == {tensor.dtype for tensor in weights.values()}
    embedding = torch.from_numpy(in_file["token_embd.weight"].copy()).float()
    assert torch.equal(embedding, weights["model.embed_tokens.weight"])
    assert 2 == AutoModelForCausalLM.from_pretrained(directory).config.num_hidden_layers
    assert "abc" == AutoTokenizer.from_pretrained(directory).decode(AutoTokenizer.from_pretrained(directory).encode("abc")[2:])


def test_conversion_happens_once_and_gives_the_same_bytes_anywhere(tiny: Path, cache: Path, tmp_path: Path) -> None:
    """A second call converts nothing; another cache and another file name give the same directory, byte for byte."""
    stages: list[tuple[str, float]] = []
    first = convert_gguf(tiny, cache, lambda stage, fraction: stages.append((stage, fraction)))
    assert [fraction for _, fraction in stages] == sorted(fraction for _, fraction in stages)
    assert (0.0, 1.0) == (stages[0][1], stages[-1][1])

    stages.clear()
    assert first == convert_gguf(tiny, cache, lambda stage, fraction: stages.append((stage, fraction)))
    assert [] == stages
    copy = tmp_path / "renamed.gguf"
    copy.write_bytes(tiny.read_bytes())
    second = convert_gguf(copy, tmp_path / "elsewhere")
    assert first.name == second.name
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_another_file_gets_another_directory(tiny: Path, cache: Path, tmp_path: Path) -> None:
    """One changed byte of the weights is another model."""
    other = tmp_path / "other.gguf"
    content = bytearray(tiny.read_bytes())
    content[-10] ^= 1
    other.write_bytes(content)

    assert convert_gguf(tiny, cache) != convert_gguf(other, cache)


def test_a_killed_conversion_leaves_nothing_that_is_taken_for_complete(tiny: Path, cache: Path) -> None:
    """SIGKILL before the rename: no finished directory; the next call converts and clears away the remains."""
    code = (
        "import os, signal, sys; from pathlib import Path; from agentmem.engine import gguf\n"
        "gguf._sync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "gguf.convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny, cache], check=False, capture_output=True, timeout=50)
    assert -signal.SIGKILL == done.returncode, done.stderr
    (left,) = directories(cache)
    assert ".tmp-" in left

    directory = convert_gguf(tiny, cache)
    assert [directory.name] == directories(cache)
    assert (directory / "model.safetensors").is_file()


def test_a_failed_conversion_cleans_up(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is StorageFailed that names both paths, and leaves no directory."""

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "_sync", full)
    with pytest.raises(StorageFailed, match="No space left"):
        convert_gguf(tiny, cache)
    assert [] == directories(cache)


def test_two_processes_racing_both_end_well(tiny: Path, cache: Path) -> None:
    """One converts, the other waits for it; both get the same complete directory."""
    code = (
        "import sys; from pathlib import Path; from agentmem.engine.gguf import convert_gguf\n"
        "stages = []\n"
        "sys.stdin.readline()\n"
        "directory = convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]), lambda *stage: stages.append(stage))\n"
        "print(directory, bool(stages), (directory / 'config.json').is_file())"
    )
    command = [sys.executable, "-c", code, tiny, cache]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)
    ]
    answers = []
    try:
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = sorted(racer.communicate(timeout=50)[0].split() for racer in racers)
    finally:
        for racer in racers:
            racer.kill()

    (name,) = directories(cache)
    assert [[str(cache / name), "False", "True"], [str(cache / name), "True", "True"]] == answers


def test_what_is_not_gguf_is_refused(tmp_path: Path, cache: Path) -> None:
    """A file of another kind and a file that isn't there are InvalidInput naming the file."""
    path = tmp_path / "m.gguf"
    with pytest.raises(InvalidInput, match="can't be read"):
        convert_gguf(path, cache)
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(InvalidInput, match="m.gguf is not a GGUF file"):
        convert_gguf(path, cache)


def test_a_truncated_file_is_refused(tiny: Path, cache: Path, tmp_path: Path) -> None:
    """A download that broke off in the header or in the weights is refused and leaves nothing."""
    for size in (6, 2000, tiny.stat().st_size // 2):
        path = tmp_path / "cut.gguf"
        path.write_bytes(tiny.read_bytes()[:size])
        with pytest.raises(InvalidInput, match="cut.gguf"):
            convert_gguf(path, cache)
    assert [] == directories(cache)


def test_an_unknown_architecture_is_refused_by_name(tiny: Path, cache: Path, tmp_path: Path) -> None:
    """An architecture that transformers can't read from GGUF is refused by its name."""
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"llama", b"zzama"))
    with pytest.raises(InvalidInput, match="zzama"):
        convert_gguf(path, cache)


def test_missing_gguf_packages_are_named(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages that read GGUF the error says what to install."""

    def no_package(**_: object) -> None:
        raise ImportError

    monkeypatch.setattr(gguf.AutoConfig, "from_pretrained", no_package)
    with pytest.raises(InvalidInput, match="gguf and accelerate"):
        convert_gguf(tiny, cache)


def test_a_cache_that_can_not_be_written_is_named(tiny: Path, tmp_path: Path) -> None:
    """A cache directory that is a file gives StorageFailed."""
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(StorageFailed, match=os.fspath(blocked)):
        convert_gguf(tiny, blocked)


def test_progress_bars_of_transformers_come_back() -> None:
    """The library's bars are off inside and as they were after, shown or not."""
    shown = hf_logging.is_progress_bar_enabled()
    with gguf.quiet_bars():
        assert not hf_logging.is_progress_bar_enabled()
        with gguf.quiet_bars():
            pass
        assert not hf_logging.is_progress_bar_enabled()
    assert shown == hf_logging.is_progress_bar_enabled()
