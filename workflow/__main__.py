"""``python -m workflow``: the doors that make opens."""

from __future__ import annotations

import argparse
import errno
import functools
import http.server
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflow import environment
from workflow.project import (
    BOOK,
    BUILD,
    CHECKED,
    ROOT,
    SITE,
    STUDIES,
    WorkflowError,
    chapters,
    plain,
    read_notebook,
    source,
)

#: A part costs seconds to start, and what a kill loses is at most a part for each core.
_STUDY_PARTS = 32
_CORES = str(os.cpu_count() or 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what the person can mend is one line on stderr, and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (WorkflowError, OSError) as error:
        print(f"lipbook: {plain(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lipbook: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workflow", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    book = commands.add_parser("book", help="execute what changed and build the site")
    book.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="e.g. seed=3 device=cuda")
    book.add_argument("--cores", default=_CORES)
    book.set_defaults(command=_book)

    check = commands.add_parser("check", help="build the book at another seed, for the tests")
    check.add_argument("--cores", default=_CORES)
    check.set_defaults(command=_check)

    _add_claims(commands)

    refresh = commands.add_parser("refresh", help="format and re-execute the stored notebooks")
    refresh.add_argument("chapters", nargs="*", metavar="CHAPTER", help="all of them by default")
    refresh.add_argument("--cores", default=_CORES)
    refresh.set_defaults(command=_refresh)

    study = commands.add_parser("study", help="measure a long study, or repeat a sample of it")
    study.add_argument("name")
    study.add_argument("--cores", default=_CORES)
    study.add_argument("--check", metavar="N", help="repeat N random cells and compare")
    study.add_argument("--profile", default="none", help="of Snakemake, in profiles/")
    study.set_defaults(command=_study)

    lint = commands.add_parser("lint", help="check the stored notebooks' form")
    lint.set_defaults(command=_lint)

    weight = commands.add_parser("weigh", help="say how heavy the built site is")
    weight.set_defaults(command=_weigh)

    future = commands.add_parser("future", help="try the newest version of everything")
    future.set_defaults(command=_future)

    paper = commands.add_parser("pdf", help="print the built site into one PDF")
    paper.set_defaults(command=_pdf)

    serve = commands.add_parser("serve", help="serve the built site on this machine")
    serve.add_argument("--port", default="8000")
    serve.set_defaults(command=_serve)

    browser = commands.add_parser("browser", help="find or install a browser for the site's checks")
    browser.set_defaults(command=_browser)

    _add_records(commands)
    return parser


def _add_claims(commands: Any) -> None:
    """Add what concerns verdicts: one claim, other seeds, worlds in which they turn."""
    claim = commands.add_parser("claim", help="run just what a claim's check needs")
    claim.add_argument("claim")
    claim.add_argument("parameters", nargs="*", metavar="NAME=VALUE")
    claim.set_defaults(command=_claim)

    seeds = commands.add_parser("seeds", help="run chapters at seeds that nobody used yet")
    seeds.add_argument("chapters", nargs="?", default="", help='"one two", all of them by default')
    seeds.add_argument("--seeds", default="20")
    seeds.add_argument("--profile", default="none", help="of Snakemake, in profiles/")
    seeds.add_argument("--cores", default=_CORES)
    seeds.set_defaults(command=_seeds)

    flips = commands.add_parser("flips", help="plant a world for every claim, and see it turn")
    flips.add_argument("claims", nargs="*", metavar="ID", help="all of them by default")
    flips.set_defaults(command=_flips)


def _add_records(commands: Any) -> None:
    """Add what gathers, here or elsewhere, what was measured on another machine."""
    rows = commands.add_parser(
        "study-rows", help="make the table of what studies._pool has written"
    )
    rows.add_argument("name")
    rows.add_argument("folder", type=Path)
    rows.add_argument("--commit", default="", help="of the code that measured them")
    rows.add_argument(
        "--cut-off", action="store_true", help="also if more cells were cut off than ended"
    )
    rows.set_defaults(command=_study_rows)

    kit = commands.add_parser("gpu-kit", help="gather wheels for a machine without a network")
    kit.add_argument("python", nargs="?", default="3.12", help="its version of Python")
    kit.set_defaults(command=_gpu_kit)

    record = commands.add_parser("gpu-record", help="keep what `make gpu` wrote")
    record.add_argument("folder", type=Path)
    record.set_defaults(command=_gpu_record)


def _number(name: str, text: str, least: int = 1, most: int = 100_000) -> int:
    """Read a number that was given to make."""
    if not text.isdecimal() or not least <= int(text) <= most:
        raise WorkflowError(f"{name} must be a number from {least} to {most}, got {text!r}")
    return int(text)


def _book(options: argparse.Namespace) -> None:
    from workflow import graph, parameters

    cores = _number("CORES", options.cores)
    given = parameters.parse(options.parameters)
    graph.run(["site"], {"parameters": given}, cores=cores)
    print(_own_run(), end="")
    print(f"The book is at {(SITE / 'index.html').as_uri()}")


def _own_run() -> str:
    """Return what came out otherwise than in the stored notebooks, if this is another run."""
    found = json.loads((BUILD / "claims.json").read_text(encoding="utf-8"))
    if not found["own_run"]:
        return ""
    pairs = [(e["id"], e["stored"], e["verdict"]) for e in found["claims"] if e["stored"]]
    changed = [f"    {name}: {old} → {new}\n" for name, old, new in pairs if old != new]
    page = (SITE / BOOK.name / "own_run.html").as_uri()
    return f"{len(changed)} verdicts differ from the stored ones; see {page}\n{''.join(changed)}"


def _check(options: argparse.Namespace) -> None:
    from workflow import graph, parameters

    cores = _number("CORES", options.cores)
    seed = parameters.other_seed()
    print(f"The book at seed {seed}, as this commit decides:", flush=True)
    given = parameters.parse([f"seed={seed}"])
    config = {"parameters": given, "folder": str(CHECKED.relative_to(ROOT))}
    graph.run(["site"], config, cores=cores, work="check")


def _claim(options: argparse.Namespace) -> None:
    from workflow import claim, parameters

    print(claim.report(claim.run(options.claim, parameters.parse(options.parameters))))


def _seeds(options: argparse.Namespace) -> None:
    from workflow import graph, seeds

    cores, count = _number("CORES", options.cores), _number("SEEDS", options.seeds)
    chosen = options.chapters.split() or chapters()
    if unknown := set(chosen) - set(chapters()):
        raise WorkflowError(f"no chapter {sorted(unknown)[0]!r}; there are {', '.join(chapters())}")
    targets = [f"build/seeds/{name}/{seed}.json" for name in chosen for seed in seeds.seeds(count)]
    try:
        graph.run(targets, {}, cores=cores, work="seeds", profile=options.profile)
    finally:  # what is done is kept
        lines = seeds.report(seeds.gather(), chosen)
    print("\n".join([*lines, f"{len(targets)} runs are in {seeds.RECORD.relative_to(ROOT)}"]))


def _flips(options: argparse.Namespace) -> None:
    from workflow import flips

    stayed = list(flips.run(options.claims))
    if stayed:
        raise WorkflowError("no other verdict in the planted world of " + ", ".join(stayed))


def _refresh(options: argparse.Namespace) -> None:
    from workflow import graph
    from workflow.refresh import store

    cores = _number("CORES", options.cores)
    known = chapters()
    chosen = options.chapters or known
    for name in chosen:
        if name not in known:
            raise WorkflowError(f"no chapter {name!r}; there are {', '.join(known)}")
    targets = {name: f"build/refreshed/{name}.ipynb" for name in chosen}
    try:
        graph.run(list(targets.values()), {}, cores=cores, work="refresh")
    finally:  # what is done is kept, whatever another chapter does
        for name, target in targets.items():
            store(name, ROOT / target)


def _study(options: argparse.Namespace) -> None:
    from workflow import graph, study

    cores = _number("CORES", options.cores)
    experiment = study.module(options.name)
    # What takes a GPU, or days, is measured by a pool, which may be stopped.
    pooled = hasattr(experiment, "repeatable")
    if options.profile != "none" and (pooled or options.check is not None):
        what = "this study" if options.check is None else "a sample"
        raise WorkflowError(f"{what} is measured on this machine alone: leave PROFILE out")
    if options.check is not None:
        found = study.recheck(options.name, _number("CHECK", options.check))
        print("largest deviation, in units of what is tolerated:")
        print(found.max().to_string(float_format="{:.2g}".format))
        return
    table = BUILD / "studies" / f"{options.name}.csv"
    if pooled:
        from studies import _pool

        _pool.run([options.name], BUILD / "pool", workers=cores)
        study.gather_rows(options.name, BUILD / "pool", STUDIES / table.name)
        return
    config = {"study_parts": min(_STUDY_PARTS, len(experiment.cells()))}
    target = str(table.relative_to(ROOT))
    graph.run([target], config, cores=cores, work="study", profile=options.profile)
    STUDIES.mkdir(exist_ok=True)
    for path in (table, table.with_suffix(".json")):
        shutil.copyfile(path, STUDIES / path.name)
    print(f"The table is {(STUDIES / table.name).relative_to(ROOT)}; commit it with its .json")


def _study_rows(options: argparse.Namespace) -> None:
    from workflow.study import gather_rows

    table = STUDIES / f"{options.name}.csv"
    if not gather_rows(
        options.name, options.folder, table, options.commit, cut_off=options.cut_off
    ):
        raise WorkflowError(f"{options.name} did not come far enough for a table")


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


def _weigh(_: argparse.Namespace) -> None:
    from workflow.weigh import weigh

    weight = weigh(_site())
    print(weight.report())
    if faults := weight.faults():
        raise WorkflowError("\n".join(["the site is heavier than it may be:", *faults]))


def _future(_: argparse.Namespace) -> None:
    from workflow import future

    _site()
    versions = future.build(BUILD / "source")
    told = ("numpy", "sphinx", "torch")
    print(
        "The book and the core work with "
        + ", ".join(line for line in versions if line.lower().partition("==")[0] in told)
    )


def _pdf(_: argparse.Namespace) -> None:
    from workflow import paper

    sheets = paper.print_book(_site(), paper.PDF)
    print(f"The book on {sheets} sheets is {paper.PDF.relative_to(ROOT)}")


def _site() -> Path:
    if not (SITE / "index.html").exists():
        raise WorkflowError("there is no site yet: run `make book` first")
    return SITE


def _serve(options: argparse.Namespace) -> None:
    port = _number("PORT", options.port, least=0, most=65_535)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(_site()))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise WorkflowError(
            f"port {port} cannot be had ({error.strerror}): take another, make serve PORT=8123"
        ) from None
    with server:
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"The book is at {address} until you press Ctrl-C", flush=True)
        server.serve_forever()


def _browser(_: argparse.Namespace) -> None:
    from workflow import browser

    path = browser.ensure()
    print(path or "no browser here: the site's checks will be skipped")


if __name__ == "__main__":
    environment.enter()
    sys.exit(main())
