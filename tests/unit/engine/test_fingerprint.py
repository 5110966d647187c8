from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import word_tokenizer

from agentmem.engine import fingerprint
from agentmem.engine.fingerprint import FingerprintParts, config_hash, file_hash, hash_json, template_hash, tokenizer_hash, weights_hash

PARTS = FingerprintParts("c", "w", "torch.float32", "t", "m" * 64)
JSON = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@pytest.mark.parametrize("part", ["config", "weights", "dtype", "tokenizer", "template"])
def test_every_part_changes_the_fingerprint(part: str) -> None:
    """A change of any one part gives another fingerprint."""
    other = replace(PARTS, **{part: "other"})

    assert PARTS.combined() != other.combined()


def test_equal_parts_give_equal_fingerprints() -> None:
    """The fingerprint is a function of the parts: 40 hex digits for the model, 16 for the template."""
    assert PARTS.combined() == replace(PARTS).combined()
    assert [len(half) for half in PARTS.combined().split(".")] == [40, 16]


@given(st.dictionaries(st.text(), JSON))
def test_hash_ignores_the_order_of_keys(value: dict[str, Any]) -> None:
    """Dictionaries with the same items hash alike in any order."""
    assert hash_json(value) == hash_json(dict(reversed(list(value.items()))))


@given(JSON, JSON)
def test_hash_tells_values_apart(left: Any, right: Any) -> None:
    """Two values hash alike exactly when their canonical JSON is the same."""
    same = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)

    assert same == (hash_json(left) == hash_json(right))


def test_config_hash_sees_the_architecture_only() -> None:
    """Library version, path and dtype of a config don't count; anything else does."""
    config = {"hidden_size": 64, "transformers_version": "5.23.0", "dtype": "float32", "_name_or_path": "/a"}

    assert config_hash(config) == config_hash({"hidden_size": 64, "transformers_version": "6.0.0", "dtype": "bfloat16"})
    assert config_hash(config) != config_hash(config | {"hidden_size": 65})


def test_tokenizer_hash_ignores_what_a_call_leaves_behind() -> None:
    """Truncating or padding a text does not make another tokenizer; a further token does."""
    tokenizer = word_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer("w3 w4 w5", truncation=True, max_length=2, padding="max_length")

    assert before == tokenizer_hash(tokenizer)
    tokenizer.add_tokens(["<new>"])
    after = tokenizer_hash(tokenizer)
    assert before != after
    tokenizer.eos_token = "<new>"
    assert after != tokenizer_hash(tokenizer)


def test_tokenizer_without_a_fast_backend_is_hashed_by_its_vocabulary() -> None:
    """A tokenizer that can't be serialised is known by class, vocabulary and special tokens."""

    class Slow:
        special_tokens_map = {"eos_token": "</s>"}  # noqa: RUF012

        def __init__(self, vocab: dict[str, int]) -> None:
            self.vocab = vocab

        def get_vocab(self) -> dict[str, int]:
            return self.vocab

    assert tokenizer_hash(Slow({"a": 1, "b": 2})) == tokenizer_hash(Slow({"b": 2, "a": 1}))
    assert tokenizer_hash(Slow({"a": 1})) != tokenizer_hash(Slow({"a": 2}))


def test_template_hash_covers_none_text_and_named_templates() -> None:
    """No template, one text and several by name are all different."""
    assert len({template_hash(None), template_hash(""), template_hash("x"), template_hash({"default": "x"})}) == 4


def test_weights_hash_depends_on_content_not_on_place(tmp_path: Path) -> None:
    """A copy in another directory hashes alike, in any order of files; one changed byte does not."""
    first, second = tmp_path / "one", tmp_path / "two"
    for directory in (first, second):
        directory.mkdir()
        (directory / "a.safetensors").write_bytes(b"a" * 1000)
        (directory / "b.safetensors").write_bytes(b"b" * 1000)
    files = sorted(first.iterdir())
    expected = weights_hash(files, tmp_path / "cache")

    assert expected == weights_hash(sorted(second.iterdir(), reverse=True), tmp_path / "cache")
    (second / "b.safetensors").write_bytes(b"b" * 999 + b"c")
    assert expected != weights_hash(sorted(second.iterdir()), tmp_path / "cache")


def test_large_weights_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit the header, evenly spread chunks and both ends count; what lies between is documented as unseen."""
    monkeypatch.setattr(fingerprint, "WHOLE_BYTES", 10)
    monkeypatch.setattr(fingerprint, "SAMPLES", 3)
    monkeypatch.setattr(fingerprint, "SAMPLE_BYTES", 10)
    content = bytearray((100).to_bytes(8, "little") + bytes(992))

    def digest(changed: int | None) -> str:
        edited = bytearray(content)
        if changed is not None:
            edited[changed] = 1
        path = tmp_path / "m.safetensors"
        path.write_bytes(edited)
        return weights_hash([path], tmp_path / f"cache{changed}")

    expected = digest(None)
    assert all(expected != digest(seen) for seen in (50, 107, 500, 999))  # header, header's end, middle sample, tail
    assert expected == digest(300)


def test_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is read once for each (path, size, mtime); a rewritten file is read again."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"one")
    reads: list[Path] = []
    real = fingerprint._whole_hash
    monkeypatch.setattr(fingerprint, "_whole_hash", lambda file: reads.append(file) or real(file))
    expected = file_hash(path, tmp_path / "cache", whole=True)

    assert expected == file_hash(path, tmp_path / "cache", whole=True)
    assert len(reads) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert expected != file_hash(path, tmp_path / "cache", whole=True)
    assert len(reads) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"digest": 5}'])
def test_a_damaged_sidecar_is_not_believed(tmp_path: Path, content: str) -> None:
    """A torn or foreign sidecar costs hashing again and is repaired."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"one")
    expected = file_hash(path, tmp_path / "cache", whole=True)
    (sidecar,) = (tmp_path / "cache" / "digests").iterdir()
    sidecar.write_text(content)

    assert expected == file_hash(path, tmp_path / "cache", whole=True)
    assert expected == json.loads(sidecar.read_text())["digest"]


def test_a_cache_that_can_not_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash is still returned when the cache directory is a file, or the disk is full; nothing is left behind."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"one")
    expected = file_hash(path, tmp_path / "cache", whole=True)
    assert expected == file_hash(path, path, whole=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert expected == file_hash(path, tmp_path / "other", whole=True)
    assert [] == list((tmp_path / "other" / "digests").iterdir())
