"""Checkpoints: whole or absent, checked, and read without running what they hold."""

import builtins
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipbook.lab.checkpoints import Checkpoint, RandomState


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(value=0.0, width=3):
    module = nn.Linear(width, 2)
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


def checkpoint(path, part=None, **kwargs):
    return Checkpoint(path, {"part": part or layer()}, {"lr": 0.1, "name": "a", **kwargs})


def test_states_come_back_to_the_bit(tmp_path):
    torch.manual_seed(0)
    parts = {"net": nn.Linear(3, 2), "adam": None}
    parts["adam"] = torch.optim.Adam(parts["net"].parameters(), lr=0.1, betas=(0.0, 0.9))
    parts["net"](torch.ones(4, 3)).sum().backward()
    parts["adam"].step()
    saved = Checkpoint(tmp_path / "state.pt", parts, {})
    assert saved.load() is False
    saved.save()
    other = {"net": nn.Linear(3, 2)}
    other["adam"] = torch.optim.Adam(other["net"].parameters())
    assert Checkpoint(str(tmp_path / "state.pt"), other, {}).load() is True
    for mine, theirs in zip(parts["net"].parameters(), other["net"].parameters(), strict=True):
        assert torch.equal(mine, theirs)
        one, two = parts["adam"].state[mine], other["adam"].state[theirs]
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert other["adam"].param_groups[0]["betas"] == (0.0, 0.9)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_random_state_covers_the_global_generator_too():
    generator = rng(5)
    state = RandomState(generator)
    torch.manual_seed(6)
    before = state.state_dict()
    drawn = torch.rand(3, generator=generator), torch.rand(3), nn.functional.dropout(torch.ones(9))
    torch.manual_seed(7)
    state.load_state_dict(before)
    again = torch.rand(3, generator=generator), torch.rand(3), nn.functional.dropout(torch.ones(9))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_random_state_of_gpus_is_set_where_there_are_as_many(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", seen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    state = RandomState(rng()).state_dict()
    for cuda in ([], [torch.zeros(16, dtype=torch.uint8)]):
        RandomState(rng()).load_state_dict({**state, "cuda": cuda})
    assert len(seen) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    part = layer(1.0)
    stored = checkpoint(tmp_path / "state.pt", part)
    stored.save()

    def full_disk(_, file):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    nn.init.zeros_(part.weight)
    with pytest.raises(OSError, match="no space left"):
        stored.save()
    monkeypatch.undo()
    assert stored.load()
    assert part.weight.unique().tolist() == [1.0]
    stored.save()  # over what the failure left
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_a_kill_at_any_moment_of_a_write_leaves_a_whole_file(tmp_path):
    program = """
        import os, signal, sys, threading, time
        import torch
        from lipbook.lab.checkpoints import Checkpoint

        layer = torch.nn.Linear(400, 400)
        stored = Checkpoint(sys.argv[1], {"layer": layer}, {})
        stored.save()
        threading.Timer(float(sys.argv[2]), os.kill, (os.getpid(), signal.SIGKILL)).start()
        while True:
            torch.nn.init.constant_(layer.weight, layer.weight[0, 0].item() + 1)
            stored.save()
    """
    path = tmp_path / "state.pt"
    command = [sys.executable, "-c", textwrap.dedent(program), str(path), "0.2137"]
    root = Path(__file__).parents[1]
    killed = subprocess.run(command, cwd=root, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    part = nn.Linear(400, 400)
    assert Checkpoint(path, {"layer": part}, {}).load()
    assert part.weight.unique().numel() == 1  # of one write, not of two


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_is_found_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "state.pt"
    part = layer(0.5)
    stored = checkpoint(path, part)
    stored.save()
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        stored.load()
    except ValueError as error:
        assert "is damaged" in str(error)  # noqa: PT017  (either outcome will do)
    assert all(parameter.unique().tolist() == [0.5] for parameter in part.parameters())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    stored = checkpoint(tmp_path / "state.pt")
    stored.save()
    content = stored.path.read_bytes()
    stored.path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"state\.pt is damaged: .*; delete it to start from"):
        stored.load()


class Unwanted:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("import builtins; builtins.unwanted = True",)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"settings": Unwanted(), "states": {}}, path)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint(path).load()
    path.write_bytes(pickle.dumps(Unwanted()))
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint(path).load()
    assert not hasattr(builtins, "unwanted")


@pytest.mark.parametrize("content", [{"weight": torch.ones(1)}, [torch.ones(1)]])
def test_another_kind_of_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint(tmp_path / "state.pt").load()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.2}, r"was written with lr = 0\.1, not 0\.2; pass the same, or another path"),
        ({"name": "b"}, "was written with name = a, not b"),
        ({"extra": 1}, "was written with extra = None, not 1"),
    ],
)
def test_other_settings_are_refused(tmp_path, changed, message):
    path = tmp_path / "state.pt"
    checkpoint(path).save()
    part = layer(7.0)
    with pytest.raises(ValueError, match=message):
        checkpoint(path, part, **changed).load()
    assert part.weight.unique().tolist() == [7.0]


def test_other_parts_are_refused(tmp_path):
    path = tmp_path / "state.pt"
    checkpoint(path).save()
    with pytest.raises(ValueError, match=r"(?s)does not fit part: .*size mismatch"):
        checkpoint(path, layer(width=5)).load()
    with pytest.raises(ValueError, match="does not fit other: 'other'; pass what wrote it"):
        Checkpoint(path, {"other": layer()}, {"lr": 0.1, "name": "a"}).load()


def test_a_missing_folder_is_named_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs the folder .*nowhere; make it first"):
        checkpoint(tmp_path / "nowhere" / "state.pt")
