from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.segments import MemorySealFiles, make_segment
from torch.testing import assert_close

from agentmem.compression import KeyDiff, Observe, Recipe, SealInputMissing, SealJob, compressors, load_unit, run_seal_job, select
from agentmem.compression.simhash import encode, projection
from agentmem.errors import InvalidInput
from agentmem.stores import ArchiveFormat, BlockFiles, BlockHeader, BlockUnavailable, SealFiles
from agentmem.stores.records import BlockFile
from agentmem.types import BlockHash, MissReason

SIZE = 8  # tokens of a block
NOISE = make_segment(tokens=64, dim=16, seed=5)  # a session of 8 blocks
OBSERVING = [name for name in compressors if compressors.get(name).observes is not Observe.NONE]


def digest(index: int) -> BlockHash:
    return BlockHash(hashlib.sha256(bytes([index])).digest())


def session_files() -> MemorySealFiles:
    """Return the files of a session whose blocks are cut from NOISE."""
    cuts = {index: slice(index * SIZE, (index + 1) * SIZE) for index in range(8)}
    return MemorySealFiles({digest(index): (NOISE.k[:, :, cut].clone(), NOISE.v[:, :, cut].clone()) for index, cut in cuts.items()})


def unit_job(first: int = 0, stop: int = 3, **fields: object) -> SealJob:
    """Return the job of blocks ``first`` to ``stop``; by default the session's first unit."""
    defaults = {"protect": 6, "recipe": Recipe(keep=0.25, bits=64), "scale": NOISE.scale}
    return SealJob(tuple(map(digest, range(first, stop))), first * SIZE, **(defaults | fields))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_first_unit_is_scored_selected_and_encoded() -> None:
    """The result is that of the parts by hand, over the blocks in order, centred by the unit's own mean key."""
    files, job = session_files(), unit_job()
    run_seal_job(job, files)
    k, v = NOISE.k[:, :, :24], NOISE.v[:, :, :24]
    result, unit = files.results[job.block, job.name], load_unit(job, files)
    assert {"keep", "codes", "mean"} == result.keys()
    expected = select(KeyDiff().score(replace(NOISE, k=k, v=v)), 0.25, start=0, protect=6)
    assert torch.equal(expected, unit.keep)
    assert_close(k.mean(dim=2), result["mean"])
    codes = [encode(k[layer] - result["mean"][layer][:, None], projection(layer, 16, 64)) for layer in range(2)]
    assert torch.equal(torch.stack(codes), unit.codes)
    assert [(digest(0), 0), (digest(1), 8), (digest(2), 16)] == files.asked


def test_later_units_are_centred_by_the_first() -> None:
    """Codes of all units of a session can be compared, since they share one mean key; positions are the session's."""
    files, first = session_files(), unit_job()
    run_seal_job(first, files)
    later = unit_job(3, 5, anchor=(first.block, first.name), protect=26)
    run_seal_job(later, files)
    mean = files.results[first.block, first.name]["mean"]
    assert torch.equal(mean, files.results[later.block, later.name]["mean"])
    unit = load_unit(later, files)
    k = NOISE.k[:, :, 24:40]
    assert torch.equal(encode(k[1] - mean[1][:, None], projection(1, 16, 64)), unit.codes[1])
    assert (2, 2, 2 + 4) == unit.keep.shape  # two protected tokens and a quarter of 14, rounded up
    assert [24, 25] == unit.keep[1, 0, :2].tolist()
    assert int(unit.keep.max()) < 40


def test_an_anchor_of_another_code_length_serves_too() -> None:
    """A session whose policy changed its bits keeps its mean key."""
    files, first = session_files(), unit_job()
    run_seal_job(first, files)
    later = unit_job(3, 4, anchor=(first.block, first.name), recipe=Recipe(keep=0.5, bits=128))
    run_seal_job(later, files)
    assert (2, 2, 8, 16) == load_unit(later, files).codes.shape


def test_running_again_does_nothing() -> None:
    """A job is idempotent: a sound result is neither computed nor written twice."""
    files, job = session_files(), unit_job()
    run_seal_job(job, files)
    run_seal_job(job, files)
    assert 1 == files.writes
    assert 3 == len(files.asked)


def test_a_damaged_result_is_made_again() -> None:
    """What the files refuse to read counts as missing."""
    files, job = session_files(), unit_job()
    files.results[job.block, job.name] = {"keep": torch.zeros(1)}
    run_seal_job(job, files)
    assert (2, 2, 24, 8) == load_unit(job, files).codes.shape


def test_a_block_that_is_lost_stops_the_job() -> None:
    """Nothing is written; the same job succeeds when the block is back."""
    files, job = session_files(), unit_job()
    files.lost.add(digest(1))
    with pytest.raises(BlockUnavailable):
        run_seal_job(job, files)
    assert 0 == files.writes
    files.lost.clear()
    run_seal_job(job, files)
    assert 1 == files.writes


def test_a_missing_anchor_is_named() -> None:
    """A later unit is not centred by anything else than the first unit's mean."""
    files = session_files()
    with pytest.raises(SealInputMissing, match="first unit"):
        run_seal_job(unit_job(3, 4, anchor=(digest(2), "gone")), files)
    assert {} == files.results


def test_an_anchor_of_another_model_is_refused() -> None:
    """A mean key of another shape centres nothing."""
    files, first = session_files(), unit_job()
    run_seal_job(first, files)
    result = files.results[first.block, first.name]
    files.results[first.block, first.name] = result | {"mean": result["mean"][:, :, :4].clone()}
    with pytest.raises(InvalidInput, match="mean key"):
        run_seal_job(unit_job(3, 4, anchor=(first.block, first.name)), files)


@pytest.mark.parametrize("name", OBSERVING)
def test_observing_compressors_read_the_recorded_queries(name: str, tmp_path: Path) -> None:
    """The queries file is what the compressor sees, with positions and scale."""
    observes = compressors.get(name).observes
    segment = make_segment(observes, tokens=24, dim=16)
    segment = replace(segment, k=NOISE.k[:, :, :24], v=NOISE.v[:, :, :24])
    path = tmp_path / "queries.safetensors"
    safetensors.torch.save_file({"queries": segment.queries, "positions": segment.query_positions}, path)
    files, job = session_files(), unit_job(recipe=Recipe(name, keep=0.25, bits=64), queries=str(path))
    run_seal_job(job, files)
    assert torch.equal(select(compressors.get(name)().score(segment), 0.25, start=0, protect=6), load_unit(job, files).keep)


@pytest.mark.parametrize("damage", ["absent", "unnamed", "cut", "other tensors"])
def test_missing_queries_are_named(damage: str, tmp_path: Path) -> None:
    """No file, half a file, or one without queries: the error names the compressor, and nothing is written."""
    path = tmp_path / "queries.safetensors"
    if damage == "other tensors":
        safetensors.torch.save_file({"queries": torch.zeros(2, 6, 3, 16)}, path)
    if damage == "cut":
        path.write_bytes(safetensors.torch.save({"queries": torch.zeros(9)})[:20])
    files = session_files()
    with pytest.raises(SealInputMissing, match="snapkv observes queries"):
        run_seal_job(unit_job(recipe=Recipe("snapkv"), queries="" if damage == "unnamed" else str(path)), files)
    assert {} == files.results


@pytest.mark.parametrize(
    ("shape", "positions"),
    [((2, 6, 3, 8), 3), ((1, 6, 3, 16), 3), ((2, 5, 3, 16), 3), ((2, 6, 3, 16), 4), ((2, 6, 0, 16), 0), ((2, 3, 16), 3)],
)
def test_queries_that_do_not_fit_the_keys_are_refused(shape: tuple[int, ...], positions: int, tmp_path: Path) -> None:
    """Another head dimension, layer count, group, number of positions, none at all, or a dimension too few."""
    path = tmp_path / "queries.safetensors"
    safetensors.torch.save_file({"queries": torch.zeros(shape), "positions": torch.arange(positions)}, path)
    with pytest.raises(InvalidInput, match="do not fit"):
        run_seal_job(unit_job(recipe=Recipe("h2o"), queries=str(path)), session_files())


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"recipe": Recipe("keydif")}, "keydiff"), ({"recipe": Recipe(keep=0.0)}, "keep"), ({"recipe": Recipe(bits=12)}, "bits")],
)
def test_jobs_that_can_never_work_are_refused(fields: dict[str, object], named: str) -> None:
    """An unknown method, an empty share, odd code lengths: the error names what is allowed, nothing is written."""
    files = session_files()
    with pytest.raises(InvalidInput, match=named):
        run_seal_job(unit_job(**fields), files)
    assert {} == files.results


def test_a_job_without_blocks_is_refused() -> None:
    """There is nothing to seal, and no block to store the result beside."""
    with pytest.raises(InvalidInput, match="no blocks"):
        run_seal_job(unit_job(0, 0), session_files())


def test_keys_that_are_not_numbers_are_refused() -> None:
    """A block of NaN keys is not sealed into an arbitrary selection."""
    files = session_files()
    files.blocks[digest(0)][0].fill_(torch.nan)
    with pytest.raises(InvalidInput, match="finite"):
        run_seal_job(unit_job(), files)
    assert {} == files.results


def test_loading_what_was_not_sealed_says_so() -> None:
    """No result: BlockUnavailable, so that the caller can order one."""
    with pytest.raises(BlockUnavailable):
        load_unit(unit_job(), session_files())


@pytest.mark.parametrize("position", [-1, 24])
def test_a_result_that_keeps_foreign_tokens_is_not_believed(position: int) -> None:
    """Kernels gather rows by these positions, so one outside the unit is corruption."""
    files, job = session_files(), unit_job()
    run_seal_job(job, files)
    files.results[job.block, job.name]["keep"][1, 0, 0] = position
    with pytest.raises(BlockUnavailable) as caught:
        load_unit(job, files)
    assert MissReason.CORRUPT is caught.value.reason


def test_half_precision_blocks_of_one_unit() -> None:
    """A unit of one bf16 block works; mean and codes are computed in fp32; blocks and thread count stay as they were."""
    files = session_files()
    k, v = (tensor.bfloat16() for tensor in files.blocks[digest(0)])
    files.blocks[digest(0)] = (k, v)
    before, threads = k.clone(), torch.get_num_threads()
    job = unit_job(0, 1)
    run_seal_job(job, files)
    assert_close(k.float().mean(dim=2), files.results[job.block, job.name]["mean"])
    assert torch.equal(before, k)
    assert threads == torch.get_num_threads()


def test_real_files_take_the_result(tmp_path: Path) -> None:
    """On disk the result is that of the files in memory; cut in half it is set aside and made again, equal to the byte."""
    job, later = unit_job(), unit_job(3, 5, anchor=(unit_job().block, unit_job().name))
    header = BlockHeader(1, "model", "float32", layers=2, kv_heads=2, head_dim=16, first_token=0, n_tokens=SIZE, rope="default")
    memory = session_files()
    blocks = BlockFiles(tmp_path / "blocks", quarantine=tmp_path / "quarantine")
    blocks.write_all([BlockFile(digest(i), replace(header, first_token=i * SIZE), *memory.blocks[digest(i)]) for i in range(5)])
    disk = SealFiles(blocks.root, header, ArchiveFormat.NATIVE)
    for files in (memory, disk):
        run_seal_job(job, files)
        run_seal_job(later, files)
    assert all(map(torch.equal, load_unit(later, memory), load_unit(later, disk)))
    path = blocks.path(job.block, job.name)
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(BlockUnavailable):
        load_unit(job, disk)
    run_seal_job(job, disk)
    assert sound == path.read_bytes()


def test_importing_loads_neither_kernels_nor_models() -> None:
    """Workers start without numba, FAISS and transformers; the registry is full as soon as any module of the package is imported."""
    code = (
        "import sys, json; from agentmem.compression.compressor import compressors;"
        "print(json.dumps([sorted({'numba', 'faiss', 'transformers'} & set(sys.modules)), 'keydiff' in compressors]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [[], True] == json.loads(done.stdout)
