"""What a claim's check needs, by a notebook's data flow; planted worlds; other seeds."""

from __future__ import annotations

import copy
import datetime
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from lipbook.notebook import claims
from lipbook.notebook.catalogue import catalogue
from workflow import claim as runner
from workflow import flips, seeds, slices
from workflow.project import ROOT, WorkflowError

#: A chapter's slice is taken for two tests.
of_claim = functools.cache(slices.of_claim)
CHECK = "claims.check('T1', size=size)"
TESTED = [entry for entry in catalogue().values() if entry.tested]


def chosen(*sources: str, check: str = CHECK) -> list[int]:
    """Return the numbers of the cells that the check needs, itself left out."""
    cells = [nbformat.v4.new_code_cell(text, id=str(n)) for n, text in enumerate((*sources, check))]
    part = slices.of_cells(cells, "T1", "tiny")
    assert part.cells[-1].source == check
    assert part.of == len(sources) + 1
    return [int(cell.id) for cell in part.cells[:-1]]


@pytest.mark.parametrize(
    ("sources", "needed"),
    [
        (["size = 1"], [0]),
        (["other = 1", "size = 2"], [1]),
        (["a = 1", "b = 2", "size = a"], [0, 2]),
        (["size = 1", "size = 2"], [1]),  # the first is overwritten
        (["size = 1", "size += 1"], [0, 1]),
        (["size = 1", "size = size + 1"], [0, 1]),
        (["import math", "import os", "size = math.pi"], [0, 2]),
        (["from math import pi as p", "size = p"], [0, 1]),
        (["import os.path", "size = os.sep"], [0, 1]),
        (["a, *b = 1, 2", "(c, d), e = (b, 1), 2", "size = c"], [0, 1, 2]),
        (["size = []", "print(size)", "size.append(1)"], [0, 2]),
        (["size = {}", "size['a'] = 1"], [0, 1]),
        (["size = f()", "size.b.c = 1", "def f(): return 1"], [0, 1]),
        (["size = f()", "size.data *= 2"], [0, 1]),
        (["size = torch.zeros(2)", "size.add(1)", "size.mul_(2)"], [0, 1, 2]),
        (["import torch", "size = torch.zeros(2)", "torch.nn.init.ones_(size)"], [0, 1, 2]),
        (["size = [a]", "for part in size:\n    part.clear()"], [0, 1]),
        (["size = net()", "losses = train(size)", "loss = measure(size)"], [0, 1]),
        (["rng = seed(1)", "x = rand(2, generator=rng)", "size = rand(generator=rng)"], [0, 1, 2]),
        (["if True:\n    size = 1\nelse:\n    size = 2"], [0]),
        (["for size in range(3):\n    pass"], [0]),
        (["with open('f') as size:\n    pass"], [0]),
        (["y = (size := 3)"], [0]),
    ],
)
def test_what_binds_or_changes_the_value_is_needed(sources, needed):
    assert chosen(*sources) == needed


@pytest.mark.parametrize(
    ("sources", "needed"),
    [
        (["def f(x): return x", "size = f(1)"], [0, 1]),
        (["r = 1", "def f(x): return r", "size = f(1)"], [0, 1, 2]),
        (["def f(x): return r", "r = 1", "size = f(1)"], [0, 1, 2]),  # looked up when called
        (["def g(): return r", "r = 1", "def f(): return g()", "size = f()"], [0, 1, 2, 3]),
        (["def f(): return f", "size = f()"], [0, 1]),
        (["x = 1", "def f(x): return x", "size = f(2)"], [1, 2]),
        (["x = 1", "def f():\n    x = 2\n    return x", "size = f()"], [1, 2]),
        (["x = 1", "def f(y=x): return y", "size = f()"], [0, 1, 2]),
        (["n = 1", "class A:\n    def m(self): return n", "size = A().m()"], [0, 1, 2]),
        (["t = []", "def f(): t.append(1)", "f()", "size = t"], [0, 1, 2, 3]),
        (["r = 1", "def f(): return r\nsize = f()"], [0, 1]),
        (["r = 1", "def g(): return r\ndef f(): return g()\nsize = map(f, 'ab')"], [0, 1]),
        (["r = 1", "def f(): return r\nfor n in range(2):\n    size = f()"], [0, 1]),
        (["t = []", "def f(): t.append(1)\nf()", "size = t"], [0, 1, 2]),
        (["import a", "import b\nr = 1", "size = 1\ndef f(): return a, r"], [0, 2]),
        (["x = 1", "size = [x for x in range(3)]"], [1]),
        (["x = 1", "size = lambda x: x"], [1]),
        (["x = 1", "size = [y + x for y in range(3)]"], [0, 1]),
    ],
)
def test_functions_and_scopes_are_followed(sources, needed):
    assert chosen(*sources) == needed


def test_no_slice_misses_a_name(tmp_path):
    for entry in TESTED:
        part = of_claim(entry.id, entry.chapter)
        (tmp_path / f"{entry.id}.py").write_text(part.script(), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "F821",
        "--output-format",
        "concise",
        ".",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_sets_the_seeds_is_always_needed():
    sources = ["seed = 0", "run = runtime.start(seed)", "other = 1", "size = 2"]
    assert chosen(*sources) == [0, 1, 3]


def test_the_parameters_of_a_run_come_after_the_stored_ones():
    parameters = nbformat.v4.new_code_cell("seed = 0", id="p", metadata={"tags": ["parameters"]})
    check = nbformat.v4.new_code_cell("claims.check('T1', size=seed)", id="check-t1")
    script = slices.of_cells([parameters, check], "T1", "tiny").script({"seed": 3})
    assert script.index("seed = 0") < script.index("seed = 3") < script.index("claims.check")
    compile(script, "script", "exec")


@pytest.mark.parametrize(("after", "order"), [("", "world a check"), ("a", "a world check")])
def test_a_world_is_planted_first_or_after_a_cell(after, order):
    sources = {"a": "size = 'a'", "check": CHECK}
    cells = [nbformat.v4.new_code_cell(text, id=name) for name, text in sources.items()]
    script = slices.of_cells(cells, "T1", "tiny").script(plant=slices.Plant("x = 1", after))
    places = {"world": script.index("x = 1"), "a": script.index("size = 'a'")}
    places["check"] = script.index("claims.check")
    assert " ".join(sorted(places, key=places.get)) == order


def test_a_world_after_a_cell_that_is_not_needed_is_refused():
    cells = [nbformat.v4.new_code_cell(CHECK, id="check")]
    with pytest.raises(WorkflowError, match="comes after elsewhere, not needed"):
        slices.of_cells(cells, "T1", "tiny").script(plant=slices.Plant("", "elsewhere"))


def test_a_claim_that_no_cell_checks_is_named():
    with pytest.raises(WorkflowError, match="no chapter checks 'XX1'"):
        slices.chapter_of("XX1")


@pytest.mark.parametrize("entry", TESTED, ids=lambda entry: entry.id)
def test_every_claims_check_is_a_script_shorter_than_its_chapter(entry):
    part = of_claim(entry.id, entry.chapter)
    compile(part.script(), entry.id, "exec")
    assert part.cells[0].id == "parameters"
    assert len(part.cells) < part.of / 2


# --- some of them run


def rotating(names: list[str]) -> list[str]:
    """Return three of them, others each day."""
    day = 3 * datetime.datetime.now(datetime.UTC).toordinal()
    return [names[(day + n) % len(names)] for n in range(min(3, len(names)))]


def test_a_slice_finds_what_the_whole_chapter_found():
    """To the digit, where nothing is trained."""
    entry = catalogue()["PI2"]
    ran = runner.run(entry.id)
    kept = runner.stored(entry.id, entry.chapter)
    assert not runner.differences(ran.record, kept)
    values = {item["id"]: item["values"] for item in kept["criteria"]}
    for item in ran.record["criteria"]:
        assert item["values"] == pytest.approx(values[item["id"]], rel=1e-6, abs=1e-9)
    assert "code cells of 03_power_iteration" in runner.report(ran)


def test_a_claim_that_no_chapter_checks_is_refused():
    with pytest.raises(WorkflowError, match=r"no chapter checks XX1, XX2; there are LC0 .* SP11"):
        list(runner.run_all(["PI2", "XX1", "XX2"]))


def test_all_claims_are_run_and_those_that_differ_are_named(monkeypatch, capsys):
    def run(claim: str) -> runner.Ran:
        if claim == "PI3":
            raise WorkflowError("PI3 broke off")
        record = copy.deepcopy(runner.stored(claim, catalogue()[claim].chapter))
        if claim == "PI1":
            record["verdict"] = "undecided"
            record["criteria"][0]["state"] = "reversed"
        return runner.Ran(slices.Slice("a", claim, (), 9), record, 1.0)

    monkeypatch.setattr(runner, "run", run)
    assert list(runner.run_all(["PI1", "PI2", "PI3"])) == ["PI1", "PI3"]
    said = capsys.readouterr().out
    assert "PI1: undecided instead of holds; eigenvalue reversed instead of met. 1.0 s" in said
    assert "PI2: as stored" in said
    assert list(runner.run_all()) == ["PI1", "PI3"]


def test_a_slice_that_breaks_off_says_where():
    with pytest.raises(WorkflowError, match=r"PI2 broke off: NameError: .*\n    script: .*PI2\.py"):
        runner.run("PI2", plant=slices.Plant("nowhere"))


# --- planted worlds


def test_every_world_is_of_a_claim_that_is_tested():
    assert flips.worlds().keys() <= {entry.id for entry in TESTED}


def test_a_world_of_an_unknown_claim_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "flips.yml"
    path.write_text("XX1: {words: A., code: pass}")
    monkeypatch.setattr(flips, "WORLDS", path)
    with pytest.raises(WorkflowError, match=r"flips\.yml has worlds of unknown claims \['XX1'\]"):
        flips.worlds()


def test_what_is_recorded_did_turn():
    for claim, flip in flips.stored()["flips"].items():
        assert flip["verdict"] != catalogue()[claim].verdict, f"make flips ID={claim}"
        assert flip["world"] == flips.worlds()[claim].words, f"make flips ID={claim}"


#: Their worlds take seconds.
CHEAP = ("PI1", "LC4", "MN1", "SP3", "SP4", "SR2", "WG4", "WG5", "SP5")


@pytest.mark.parametrize("claim", rotating(list(CHEAP)))
def test_a_planted_world_turns_the_verdict(claim):
    found = flips.turned(claim, flips.worlds()[claim])
    assert found["verdict"] == flips.stored()["flips"][claim]["verdict"]


def ran(verdict: str) -> runner.Ran:
    part = slices.Slice("03_power_iteration", "PI2", (), 1)
    return runner.Ran(part, {"verdict": verdict, "criteria": []}, 1.0)


def test_what_turned_is_recorded_and_what_stayed_is_named(tmp_path, monkeypatch, capsys):
    path = tmp_path / "flips.yml"
    world = {"words": "Otherwise.", "code": "pass"}
    path.write_text(yaml.safe_dump({"PI2": world, "PI1": world, "PI3": world}))
    monkeypatch.setattr(flips, "WORLDS", path)
    monkeypatch.setattr(flips, "RECORD", tmp_path / "records" / "flips.json")

    def run(claim: str, plant: slices.Plant) -> runner.Ran:
        if claim == "PI3":
            raise WorkflowError("PI3 broke off")
        return ran("holds")

    monkeypatch.setattr(runner, "run", run)
    assert list(flips.run()) == ["PI1", "PI3"]
    assert list(flips.stored()["flips"]) == ["PI2"]
    assert flips.stored()["flips"]["PI2"]["verdict"] == "holds"
    assert "PI2: fails as printed → holds. Otherwise." in capsys.readouterr().out


# --- other seeds


def tiny(folder: Path, body: str) -> Path:
    parameters = nbformat.v4.new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]})
    check = "from lipbook.notebook import claims\n" + body
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(check)])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "p"}
    notebook.metadata["language_info"] = {"name": "python"}
    path = folder / "01_tiny.ipynb"
    nbformat.write(notebook, path)
    return path


def test_a_seed_keeps_its_verdicts_also_those_that_the_catalogue_has_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    body = "claims.check('PI1', eigenvalue=seed, eigenvector=0, random_stretch=1)"
    output = tmp_path / "1001.json"
    seeds.run(tiny(tmp_path, body), 1001, output, tmp_path / "log")
    assert json.loads(output.read_text()) == {"verdicts": {"PI1": "fails as printed"}}
    assert claims.CONTRADICTIONS not in os.environ
    assert not output.with_suffix(".ipynb").exists()


def test_a_seed_keeps_what_broke_it_off(tmp_path, monkeypatch):
    def execute(notebook: Path, executed: Path, log: Path, parameters: dict[str, Any]) -> None:
        raise WorkflowError(f"RuntimeError: at {parameters['seed']}")

    monkeypatch.setattr(seeds, "execute", execute)
    seeds.run(tiny(tmp_path, "pass"), 1001, tmp_path / "1001.json", tmp_path / "log")
    kept = json.loads((tmp_path / "1001.json").read_text())
    assert kept == {"failed": "RuntimeError: at 1001"}


def test_a_seed_executes_what_its_checks_need_and_nothing_else():
    code = {
        "data": "values = [seed]",
        "picture": "draw(values)",
        "first": "claims.check('T1', a=values)",
        "between": "other = 3",
        "second": "claims.check('T2', b=other)",
        "last": "print(other)",
    }
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in code.items()]
    needed = slices.of_all_claims(cells, "tiny")
    assert [cell.id for cell in needed] == ["data", "first", "between", "second"]


def test_more_seeds_are_the_same_and_further_ones():
    assert list(seeds.seeds(40))[:20] == list(seeds.seeds(20))


@pytest.fixture
def record(tmp_path, monkeypatch) -> Path:
    """Return an empty record, with a place for runs beside it."""
    monkeypatch.setattr(seeds, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(seeds, "RECORD", tmp_path / "records" / "seeds.json")
    return seeds.RECORD


def keep(chapter: str, seed: int, found: dict[str, Any]) -> None:
    path = seeds.RUNS / chapter / f"{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))


def test_runs_are_joined_to_those_of_the_record(record):
    keep("01_tiny", 1000, {"verdicts": {"PI1": "holds"}})
    seeds.gather()
    (seeds.RUNS / "01_tiny" / "1000.json").unlink()
    keep("01_tiny", 1001, {"failed": "a cell"})
    assert seeds.gather()["chapters"]["01_tiny"].keys() == {"1000", "1001"}


def test_the_report_names_chapter_seed_and_claim(record):
    verdicts = {"PI1": "holds", "PI2": "holds"}
    keep("03_power_iteration", 1000, {"verdicts": verdicts})
    keep("03_power_iteration", 1001, {"failed": "cell 3 failed"})
    keep("05_wgan_gp", 1000, {"failed": "left out"})
    assert seeds.report(seeds.gather(), ["03_power_iteration"]) == [
        "03_power_iteration, seed 1000: PI2 holds, not fails as printed",
        "03_power_iteration, seed 1001: cell 3 failed",
    ]
