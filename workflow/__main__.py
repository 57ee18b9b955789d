"""``python -m workflow``: what make's targets and the Snakefile's rules call."""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workflow.project import (
    BUILD,
    FAILURES,
    ROOT,
    SITE,
    STUDIES,
    WorkflowError,
    chapters,
    read_notebook,
    source,
)

#: A part costs seconds to start, and what a kill loses is at most a part for each core.
_STUDY_PARTS = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what the person can mend is one line on stderr, and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except WorkflowError as error:
        _report(error)
        return 1
    except KeyboardInterrupt:
        print("lipbook: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _report(error: WorkflowError) -> None:
    """Say what went wrong: to the build that runs this step, or to the person."""
    if failures := os.environ.get(FAILURES):
        with Path(failures).open("a", encoding="utf-8") as stream:
            stream.write(f"{error}\n")
    else:
        print(f"lipbook: {error}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workflow", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    book = commands.add_parser("book", help="execute what changed and build the site")
    book.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="e.g. seed=3 device=cuda")
    book.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    book.set_defaults(command=_book)

    refresh = commands.add_parser("refresh", help="re-execute the stored notebooks in place")
    refresh.add_argument("chapters", nargs="*", metavar="CHAPTER", help="all of them by default")
    refresh.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    refresh.set_defaults(command=_refresh)

    study = commands.add_parser("study", help="measure a long study, or repeat a sample of it")
    study.add_argument("name")
    study.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    study.add_argument("--check", type=int, metavar="N", help="repeat N random cells and compare")
    study.set_defaults(command=_study)

    lint = commands.add_parser("lint", help="check the stored notebooks' form")
    lint.set_defaults(command=_lint)

    serve = commands.add_parser("serve", help="serve the built site on this machine")
    serve.add_argument("--port", type=int, default=8000)
    serve.set_defaults(command=_serve)

    browser = commands.add_parser("browser", help="find or install a browser for the site's checks")
    browser.set_defaults(command=_browser)

    # The rest are the Snakefile's.
    execute = commands.add_parser("execute", help="execute one chapter")
    execute.add_argument("chapter")
    execute.add_argument("--output", type=Path, required=True)
    execute.add_argument("--log", type=Path, required=True)
    execute.add_argument("--parameters", type=json.loads, default={}, metavar="JSON")
    execute.set_defaults(command=_execute)

    part = commands.add_parser("study-part", help="measure one part of a study")
    part.add_argument("name")
    part.add_argument("--part", type=int, required=True)
    part.add_argument("--of", type=int, required=True)
    part.add_argument("--output", type=Path, required=True)
    part.set_defaults(command=_study_part)

    gather = commands.add_parser("study-table", help="join the parts of a study")
    gather.add_argument("name")
    gather.add_argument("parts", nargs="+", type=Path)
    gather.add_argument("--target", type=Path, required=True)
    gather.set_defaults(command=_study_table)

    rows = commands.add_parser(
        "study-rows", help="make the table of what studies._pool has written"
    )
    rows.add_argument("name")
    rows.add_argument("folder", type=Path)
    rows.set_defaults(command=_study_rows)

    kit = commands.add_parser("gpu-kit", help="gather wheels for a machine without a network")
    kit.add_argument("python", nargs="?", default="3.12", help="its version of Python")
    kit.set_defaults(command=_gpu_kit)

    record = commands.add_parser("gpu-record", help="keep what `make gpu` wrote")
    record.add_argument("folder", type=Path)
    record.set_defaults(command=_gpu_record)

    stage = commands.add_parser("stage", help="lay out the tree that Sphinx reads")
    stage.add_argument("executed", nargs="*", type=Path)
    stage.add_argument("--target", type=Path, required=True)
    stage.add_argument("--repository", default="")
    stage.set_defaults(command=_stage)

    records = commands.add_parser("records", help="collect what the chapters measured")
    records.add_argument("executed", nargs="*", type=Path)
    records.add_argument("--output", type=Path, required=True)
    records.set_defaults(command=_records)

    site = commands.add_parser("site", help="build the site from the staged tree")
    site.add_argument("staged", type=Path)
    site.add_argument("--target", type=Path, required=True)
    site.add_argument("--log", type=Path, required=True)
    site.set_defaults(command=_site)
    return parser


def _book(options: argparse.Namespace) -> None:
    from workflow import graph, parameters

    given = parameters.parse(options.parameters)
    graph.run(["site"], {"parameters": given}, cores=options.cores)
    print(f"The book is at {(SITE / 'index.html').as_uri()}")


def _refresh(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    known = chapters()
    chosen = options.chapters or known
    for name in chosen:
        if name not in known:
            raise WorkflowError(f"no chapter {name!r}; there are {', '.join(known)}")
    with concurrent.futures.ThreadPoolExecutor(options.cores) as pool:
        done = concurrent.futures.as_completed([pool.submit(_refreshed, name) for name in chosen])
        for future in tqdm(done, total=len(chosen), unit="chapter"):
            future.result()


def _refreshed(name: str) -> None:
    """Execute a chapter in place, in a process of its own: papermill has one log a process."""
    log = BUILD / "logs" / f"refresh-{name}.log"
    command = [sys.executable, "-m", "workflow", "execute", name]
    command += ["--output", str(source(name)), "--log", str(log)]
    step = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if step.returncode:
        raise WorkflowError(step.stderr.strip().removeprefix("lipbook: "))


def _study(options: argparse.Namespace) -> None:
    from workflow import graph, study

    experiment = study.module(options.name)
    if options.check is not None:
        if options.check < 1:
            raise WorkflowError(f"CHECK must be at least 1, got {options.check}")
        found = study.recheck(options.name, options.check)
        print("largest deviation, in units of what is tolerated:")
        print(found.max().to_string(float_format="{:.2g}".format))
        return
    table = BUILD / "studies" / f"{options.name}.csv"
    if hasattr(experiment, "repeatable"):  # for a GPU, or days: by a pool, which may be stopped
        from studies import _pool

        _pool.run([options.name], BUILD / "pool", workers=options.cores)
        study.gather_rows(options.name, BUILD / "pool", STUDIES / table.name)
        return
    config = {"study_parts": min(_STUDY_PARTS, len(experiment.cells()))}
    graph.run([str(table.relative_to(ROOT))], config, cores=options.cores, work="study")
    STUDIES.mkdir(exist_ok=True)
    for path in (table, table.with_suffix(".json")):
        shutil.copyfile(path, STUDIES / path.name)
    print(f"The table is {(STUDIES / table.name).relative_to(ROOT)}; commit it with its .json")


def _study_part(options: argparse.Namespace) -> None:
    from workflow.study import measure_part

    measure_part(options.name, options.part, options.of, options.output)


def _study_table(options: argparse.Namespace) -> None:
    from workflow.study import gather

    gather(options.name, options.parts, options.target)


def _study_rows(options: argparse.Namespace) -> None:
    from workflow.study import gather_rows

    gather_rows(options.name, options.folder, STUDIES / f"{options.name}.csv")


def _gpu_kit(options: argparse.Namespace) -> None:
    from workflow import kit

    wheels = kit.gather(options.python)
    print(f"The wheels are in {wheels.relative_to(ROOT)}: copy them along with the clone")


def _gpu_record(options: argparse.Namespace) -> None:
    from workflow.gpu_record import keep

    for line in keep(options.folder):
        print(line)


def _lint(_: argparse.Namespace) -> None:
    from workflow.notebooks import faults

    notebooks = {name: read_notebook(source(name)) for name in chapters()}
    found = [f"{name}: {fault}" for name in notebooks for fault in faults(notebooks[name])]
    if found:
        raise WorkflowError("the stored notebooks need work:\n" + "\n".join(found))


def _serve(options: argparse.Namespace) -> None:
    if not (SITE / "index.html").exists():
        raise WorkflowError("there is no site yet: run `make book` first")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", options.port), handler) as server:
        print(f"The book is at http://127.0.0.1:{server.server_port}/ until you press Ctrl-C")
        server.serve_forever()


def _browser(_: argparse.Namespace) -> None:
    from workflow import browser

    path = browser.ensure()
    print(path or "no browser here: the site's checks will be skipped")


def _execute(options: argparse.Namespace) -> None:
    from workflow.execute import execute

    execute(options.chapter, options.output, options.log, options.parameters)


def _stage(options: argparse.Namespace) -> None:
    from workflow.stage import stage

    stage(options.executed, options.target, options.repository)


def _records(options: argparse.Namespace) -> None:
    from lipbook.notebook.claims import records

    found = {path.stem: list(records(read_notebook(path))) for path in options.executed}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial = options.output.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(options.output)


def _site(options: argparse.Namespace) -> None:
    from workflow.site import build_site

    build_site(options.staged, options.target, options.log)


if __name__ == "__main__":
    sys.exit(main())
