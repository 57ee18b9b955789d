"""``make gpu``: a run of the smallest settings to its end, and the page that shows a record."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys

import gpu_page

from workflow import environment, gpu
from workflow.project import ROOT

NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code",
            "id": "one",
            "metadata": {},
            "execution_count": 1,
            "source": "1 + 1",
            "outputs": [
                {
                    "output_type": "execute_result",
                    "execution_count": 1,
                    "metadata": {},
                    "data": {"text/plain": "2"},
                }
            ],
        },
        {
            "cell_type": "code",
            "id": "two",
            "metadata": {},
            "execution_count": 2,
            "source": "import os; os.environ['LIPBOOK_DEVICE']",
            "outputs": [],
        },
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


def outputs(*values: float) -> list[dict]:
    """What `claims.check` leaves in a cell."""
    criterion = {"id": "share", "values": list(values)}
    return [{"metadata": {"lipbook": {"id": "LC1", "criteria": [criterion]}}}]


def test_it_runs_to_its_end_and_leaves_one_record(tmp_path):
    command = [sys.executable, "-m", "workflow.gpu", "--tiny", "--minutes", "2"]
    command += ["--studies", "", "--chapters", "", "--out", str(tmp_path / "out")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=180)
    record = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert {row["method"] for row in record["step times"]} == {
        "plain",
        "torch's SN",
        "our SN",
        "penalty",
    }
    assert record["machine"]["device"]
    assert "| our SN |" in gpu_page.part(record, "step times")


def test_a_chapter_is_run_and_what_its_cells_do_is_noted(tmp_path, monkeypatch):
    book = tmp_path / "book"
    book.mkdir()
    (book / "toy.ipynb").write_text(json.dumps(NOTEBOOK))
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    chapters = gpu.Chapters(tmp_path, names=["toy"])
    chapters.end(gpu.time.monotonic() + 120)
    found = chapters.found()["toy"]
    assert (found["passed"], found["cells"]) == (1, 2), found
    assert found["whole"]  # one cell has another output than stored: it failed, and it was seen
    assert len(found["failed"]) == 1


#: What builds and checks the site, and no kit brings.
SPARED = ("grimp", "snakemake", "papermill", "playwright")


def test_a_chapter_is_run_where_only_the_kit_is():
    """Conftest and the plugins are imported without what the kit spares."""
    lines = [*(f"sys.modules[{name!r}] = None" for name in SPARED), "import conftest"]
    lines += ["import workflow.gpu, workflow.gpu_cells"]
    step = subprocess.run(
        [sys.executable, "-c", "\n".join(["import sys", *lines])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert step.returncode == 0, step.stderr[-500:]


def test_the_kit_reaches_the_kernels():
    kept = environment.cleaned({"PYTHONPATH": "/elsewhere", environment.KIT: "/site:/more"})
    assert kept["PYTHONPATH"] == f"{ROOT}:/site:/more"
    assert environment.cleaned(kept) == kept  # the next process has it too
    assert environment.cleaned({"PYTHONPATH": "/elsewhere"})["PYTHONPATH"] == str(ROOT)


def test_the_largest_deviation_of_each_number_is_relative_to_the_stored():
    stored = {"cells": [{"outputs": outputs(1.0, 4.0)}, {"cell_type": "markdown"}]}
    (found,) = gpu.deviations(stored, [{"outputs": outputs(1.5, 4.0)}])
    assert found == {"claim": "LC1", "criterion": "share", "relative": 0.125}
    (found,) = gpu.deviations(stored, [{"outputs": outputs(1.0)}])
    assert found["relative"] is None


def test_a_part_that_fails_is_noted_and_the_others_go_on(tmp_path):
    results = gpu.Results(tmp_path / "out", tmp_path)
    results.step("bad", lambda: 1 / 0)
    results.step("good", lambda: 2)
    results.close()
    record = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert "ZeroDivisionError" in record["bad"]["failed"]
    assert record["good"] == 2


def test_images_that_fit_are_kept_of_the_widest_first(tmp_path):
    lines = [
        {"cell": {"width": width, "seed": 0}, "step": step, "png": base64.b64encode(mark).decode()}
        for width, step, mark in ((16, 100, b"narrow"), (64, 10, b"early"), (64, 50, b"late"))
    ]
    file = tmp_path / "panels-grids.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cell": {"wid')
    assert gpu.last_grid(file) == b"late"
    results = gpu.Results(tmp_path / "out", tmp_path)
    results.close()
    assert (tmp_path / "out" / "gpu-grid.png").read_bytes() == b"late"
    with gzip.open(tmp_path / "out" / "panels-grids.jsonl.gz", "rt") as kept:
        assert len(kept.readlines()) == 3
    most = len(json.dumps(lines[0])) + 5.0
    assert ["late" in base64.b64decode(json.loads(x)["png"]).decode()
            for x in gpu._within(iter(lines), most)] == [True]  # fmt: skip


def test_the_page_says_which_part_is_missing():
    record = {
        "machine": {"device": "CPU"},
        "chapters": {
            "01": {"passed": 3, "cells": 4, "whole": True, "quantities": [
                {"claim": "LC1", "criterion": "share", "relative": 0.125}]}
        },
    }  # fmt: skip
    assert "0.12 (LC1, share)" in gpu_page.part(record, "chapters")
    assert "stopped before" in gpu_page.part(record, "step times")
    idle = {"passed": 0, "cells": 4, "whole": False, "quantities": [], "log": "x\nE   No module"}
    told = gpu_page.part({"chapters": {"01": idle, "02": idle}}, "chapters")
    assert "No cell of a chapter was run." in told
