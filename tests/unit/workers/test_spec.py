from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.seal_jobs import PLACE, seal_job
from support.stores import digest

from agentmem.errors import ConfigError, InvalidInput
from agentmem_workers.place import Place
from agentmem_workers.port import job_key, parked_job
from agentmem_workers.spec import from_text, to_text


@pytest.mark.parametrize(
    "job", [seal_job("a"), replace(seal_job("b", keep=0.25), anchor=(digest("c"), "f" * 32), queries="/tmp/q", scale=0.5)]
)
def test_a_job_comes_back_as_it_was(job: object) -> None:
    """A job read from its text is equal, and so are the names made of it."""
    assert job == from_text(to_text(job))  # type: ignore[arg-type]


def test_a_key_names_block_and_recipe() -> None:
    """The key of a job is its block and its name, and both can be read from it; queries are no part of it."""
    job = seal_job("a")
    assert job_key(job) == job_key(replace(job, queries="elsewhere"))
    record = parked_job(job_key(job), 3, "x", 1.0)
    assert (job.block.hex(), job.name) == (record.block, record.name)
    assert len({job_key(each) for each in (job, seal_job("b"), seal_job("a", keep=0.5))}) == 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"blocks": ["zz"]}', to_text(seal_job("a")).replace('"start"', '"begin"')])
def test_what_is_no_job_is_refused(text: str) -> None:
    """Text of another version or of nothing is InvalidInput."""
    with pytest.raises(InvalidInput, match="not a seal job"):
        from_text(text)


def test_a_place_comes_back_as_it_was() -> None:
    """A worker reads the server's place, and its text is the same again, so that both can be compared."""
    place = Place.from_text(PLACE.to_text())
    assert (PLACE, PLACE.to_text()) == (place, place.to_text())


def test_a_worker_of_another_version_is_refused() -> None:
    """The message names both versions."""
    with pytest.raises(ConfigError, match=f"the server runs agentmem 99.1, this worker {PLACE.version}; run both"):
        Place.from_text(replace(PLACE, version="99.1").to_text())


@pytest.mark.parametrize("change", [{"header": {}}, {"archive_format": "int3"}, {"more": 1}, {"header": None}])
def test_what_is_no_place_is_refused(change: dict[str, object]) -> None:
    """A field that is missing, unknown or wrong is a ConfigError."""
    with pytest.raises(ConfigError, match="cannot be read"):
        Place.from_text(json.dumps(json.loads(PLACE.to_text()) | change))
    with pytest.raises(ConfigError, match="cannot be read"):
        Place.from_text("[]")
