from __future__ import annotations

import os
import random
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.datasets import make_blobs
from threadpoolctl import threadpool_info

from lipbook.notebook import runtime

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _no_setting_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIPBOOK_DEVICE", "LIPBOOK_THREADS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it, whatever `start` sets
        monkeypatch.delenv(name)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch claim that there is a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def draws() -> list[float]:
    """Return a number from each generator that a chapter may draw from without asking."""
    return [
        random.random(),
        float(np.random.rand()),  # noqa: NPY002
        float(torch.rand(())),
        float(make_blobs(3)[0][0, 0]),
        float(torch.nn.Linear(1, 1).weight.detach()),
    ]


@pytest.mark.parametrize("time", ["first", "second"])
def test_no_test_sees_what_an_earlier_one_set(time):
    assert (torch.initial_seed(), runtime.current()) == (0, None)
    assert torch.get_num_threads() != 61
    assert torch.get_deterministic_debug_mode() == 0
    runtime.start(seed=7, device="cpu", threads=61)


# --- seeds


def test_start_makes_every_generator_repeat():
    runtime.start(seed=5, device="cpu")
    first = draws()
    runtime.start(seed=5, device="cpu")
    assert draws() == first


def test_another_seed_changes_every_generator():
    runtime.start(seed=5, device="cpu")
    first = draws()
    runtime.start(seed=6, device="cpu")
    assert all(a != b for a, b in zip(draws(), first, strict=True))


@given(SEEDS, st.integers(0, 1000))
def test_a_stream_repeats(seed, stream):
    run = runtime.Run(seed, torch.device("cpu"), "default", 1)
    assert torch.equal(*(torch.rand(3, generator=run.generator(stream)) for _ in range(2)))


@given(st.tuples(SEEDS, st.integers(0, 1000)), st.tuples(SEEDS, st.integers(0, 1000)))
def test_streams_differ(one, other):
    assume(one != other)
    seeds = [
        runtime.Run(seed, torch.device("cpu"), "default", 1).generator(stream).initial_seed()
        for seed, stream in (one, other)
    ]
    assert seeds[0] != seeds[1]


def test_a_stream_leaves_the_global_generators_alone():
    run = runtime.start(seed=1, device="cpu")
    undisturbed = draws()
    run = runtime.start(seed=1, device="cpu")
    torch.rand(9, generator=run.generator(1))
    assert draws() == undisturbed


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(7), np.uint32(2**32 - 1)])
def test_good_seeds_come_back_as_int(seed):
    assert type(runtime.check_seed(seed)) is int
    assert runtime.start(seed=seed, device="cpu").seed == seed


@pytest.mark.parametrize("seed", ["3", 1.0, None, True, [1]])
def test_a_seed_must_be_an_integer(seed):
    with pytest.raises(TypeError, match=re.escape(f"seed must be an integer, got {seed!r}")):
        runtime.start(seed=seed)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_must_suit_numpy(seed):
    with pytest.raises(ValueError, match=rf"seed must be at least 0 and below 2\*\*32, got {seed}"):
        runtime.start(seed=seed)


# --- device


def test_auto_takes_the_gpu_if_there_is_one(gpu):
    assert runtime.resolve_device() == torch.device("cuda")


def test_auto_takes_the_cpu_otherwise(no_gpu):
    assert runtime.resolve_device() == torch.device("cpu")


@pytest.mark.parametrize("value", ["cpu", "cuda", "auto"])
def test_the_environment_speaks_for_auto(gpu, monkeypatch, value):
    monkeypatch.setenv("LIPBOOK_DEVICE", value)
    assert runtime.resolve_device("auto").type == {"auto": "cuda"}.get(value, value)


def test_an_explicit_device_comes_before_the_environment(gpu, monkeypatch):
    monkeypatch.setenv("LIPBOOK_DEVICE", "cuda")
    assert runtime.resolve_device("cpu").type == "cpu"


def test_an_empty_variable_says_nothing(no_gpu, monkeypatch):
    monkeypatch.setenv("LIPBOOK_DEVICE", "")
    assert runtime.resolve_device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:0", "CPU", "", None])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match=f"device must be one of 'auto', .*, got {name!r}"):
        runtime.resolve_device(name)


def test_an_unknown_device_of_the_environment_is_named_so(monkeypatch):
    monkeypatch.setenv("LIPBOOK_DEVICE", "tpu")
    with pytest.raises(ValueError, match=r"LIPBOOK_DEVICE must be one of .* got 'tpu'"):
        runtime.resolve_device("auto")


def test_cuda_without_a_gpu_says_the_way_out(no_gpu):
    with pytest.raises(RuntimeError, match=r"device is 'cuda', but .* no GPU here; take 'cpu'"):
        runtime.start(device="cuda")


def test_cuda_of_the_environment_without_a_gpu_is_named_so(no_gpu, monkeypatch):
    monkeypatch.setenv("LIPBOOK_DEVICE", "cuda")
    with pytest.raises(RuntimeError, match="LIPBOOK_DEVICE is 'cuda', but torch"):
        runtime.start(device="auto")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_numbers_of_the_cpu():
    on_gpu, on_cpu = (runtime.start(seed=3, device=d) for d in ("cuda", "cpu"))
    drawn = torch.rand(4, generator=on_gpu.generator(1)).to(on_gpu.device)
    assert drawn.is_cuda
    assert torch.equal(drawn.cpu(), torch.rand(4, generator=on_cpu.generator(1)))


# --- scale, threads, the rest of the process


@pytest.mark.parametrize(("scale", "full"), [("default", False), ("full", True)])
def test_scale(scale, full):
    assert runtime.start(device="cpu", scale=scale).full is full


@pytest.mark.parametrize("scale", ["huge", "", None, 1])
def test_an_unknown_scale_is_refused(scale):
    with pytest.raises(ValueError, match=f"scale must be one of 'default', 'full', got {scale!r}"):
        runtime.start(device="cpu", scale=scale)


def pools() -> set[int]:
    """Return the sizes of the thread pools of this process."""
    return {torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())}


@pytest.mark.parametrize(
    ("variable", "argument", "threads"), [(None, None, 1), ("2", None, 2), ("2", 1, 1)]
)
def test_threads(monkeypatch, variable, argument, threads):
    if variable:
        monkeypatch.setenv("LIPBOOK_THREADS", variable)
    assert runtime.start(device="cpu", threads=argument).threads == threads
    assert pools() == {threads}


@pytest.mark.parametrize("variable", ["0", "-1", "two", "1.5", ""])
def test_bad_thread_counts_name_the_variable(monkeypatch, variable):
    monkeypatch.setenv("LIPBOOK_THREADS", variable)
    with pytest.raises(ValueError, match=f"look at LIPBOOK_THREADS, which is {variable!r}"):
        runtime.start(device="cpu")


def test_a_bad_thread_argument_is_refused():
    with pytest.raises(ValueError, match="threads must be at least 1"):
        runtime.start(device="cpu", threads=0)


def test_start_asks_for_determinism():
    runtime.start(device="cpu")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_workspace_that_the_reader_chose_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    runtime.start(device="cpu")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_current_is_the_last_run():
    assert runtime.current() is None
    runtime.start(seed=1, device="cpu")
    last = runtime.start(seed=2, device="cpu")
    assert runtime.current() is last


def test_a_refused_start_changes_nothing():
    run = runtime.start(seed=1, device="cpu")
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="scale"):
        runtime.start(seed=2, device="cpu", scale="huge")
    assert runtime.current() is run
    assert torch.equal(torch.get_rng_state(), state)


# --- provenance


def test_provenance_names_what_made_the_numbers():
    table = runtime.provenance(runtime.start(seed=3, device="cpu", threads=2))
    facts = table["value"]
    assert list(table.columns) == ["value"]
    assert facts["seed"] == "3"
    assert facts["scale"] == "default"
    assert facts["device"] == "CPU, 2 threads"
    assert facts["torch"] == torch.__version__
    assert facts["NumPy"] == np.__version__
    assert facts["instruction set"] == torch.backends.cpu.get_cpu_capability()
    assert re.fullmatch(r"[0-9a-f]{12}", facts["lipbook source"])
    assert "chapter source" not in facts


def test_provenance_names_the_gpu(gpu):
    facts = runtime.provenance(runtime.start(device="cuda"))["value"]
    assert facts["device"] == "Some GPU, 1 thread"


def test_an_unknown_chapter_adds_nothing():
    run = runtime.start(device="cpu")
    assert "chapter source" not in runtime.provenance(run, "99_unwritten").index


@pytest.fixture
def digest_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return the digest in the provenance of a chapter that has one cell."""
    monkeypatch.setattr(runtime, "_PACKAGE", tmp_path / "lipbook")
    (tmp_path / "book").mkdir()

    def digest(source: str, output: str) -> str:
        stream = nbformat.v4.new_output("stream", text=output)
        cell = nbformat.v4.new_code_cell(source, outputs=[stream], id="cell")
        notebook = nbformat.v4.new_notebook(cells=[cell])
        nbformat.write(notebook, tmp_path / "book" / "01_some.ipynb")
        table = runtime.provenance(runtime.start(device="cpu"), "01_some")
        return table.loc["chapter source", "value"]

    return digest


def test_the_chapter_digest_sees_cells_and_not_outputs(digest_of):
    assert digest_of("print(1)", "1") == digest_of("print(1)", "2")
    assert digest_of("print(1)", "1") != digest_of("print(2)", "1")


def test_the_source_digest_sees_names_contents_and_order(tmp_path):
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text("1")
    b.write_text("2")
    before = runtime.source_digest([a, b])
    assert runtime.source_digest([a, b]) == before
    assert runtime.source_digest([b, a]) != before
    b.write_text("3")
    assert runtime.source_digest([a, b]) != before
    a.rename(tmp_path / "c.py")
    assert runtime.source_digest([tmp_path / "c.py", b]) != before
