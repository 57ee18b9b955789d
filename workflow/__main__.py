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
    claims_of,
    plain,
)

#: A part costs seconds to start, and what a kill loses is at most a part for each core.
_STUDY_PARTS = 32


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
    for name, (command, does, *arguments) in (_of_the_book() | _of_other_machines()).items():
        door = commands.add_parser(name, help=does)
        door.set_defaults(command=command)
        for argument, options in arguments:
            door.add_argument(argument, **options)
    return parser


def _of_the_book() -> dict[str, tuple[Any, ...]]:
    """Return each command: its function, what it does, and its arguments."""
    cores = ("--cores", {"default": str(os.cpu_count() or 1)})
    given = ("parameters", {"nargs": "*", "metavar": "NAME=VALUE", "help": "e.g. seed=3"})
    profile = ("--profile", {"default": "none", "help": "of Snakemake, in profiles/"})
    some = {"nargs": "*", "help": "all of them by default"}
    return {
        "book": (_book, "execute what changed and build the site", given, cores),
        "check": (_check, "build the book at another seed, for the tests", cores),
        "claim": (_claim, "run just what a claim's check needs", ("claim", {}), given),
        "claims": (_claims, "run every claim's check by itself", ("claims", some)),
        "seeds": (
            *(_seeds, "run chapters at seeds that nobody used yet", cores, profile),
            ("chapters", {"nargs": "?", "default": "", "help": '"one two", all by default'}),
            ("--seeds", {"default": "20"}),
        ),
        "flips": (_flips, "plant a world for every claim, and see it turn", ("claims", some)),
        "refresh": (
            *(_refresh, "format and re-execute the stored notebooks", cores),
            ("chapters", some),
        ),
        "study": (
            *(_study, "measure a long study, or repeat a sample of it", cores, profile),
            ("name", {}),
            ("--check", {"metavar": "N", "help": "repeat N random cells and compare"}),
        ),
        "pdf": (_pdf, "print the built site into one PDF"),
        "future": (_future, "try the newest version of everything"),
        "weigh": (_weigh, "say how heavy the built site is"),
        "serve": (_serve, "serve the built site on this machine", ("--port", {"default": "8000"})),
        "browser": (_browser, "find or install a browser for the site's checks"),
    }


def _of_other_machines() -> dict[str, tuple[Any, ...]]:
    """Return the commands by which a machine with a GPU is used."""
    folder = ("folder", {"type": Path})
    return {
        "study-rows": (
            *(_study_rows, "make the table of what studies._pool has written"),
            ("name", {}),
            folder,
            ("--commit", {"default": "", "help": "of the code that measured them"}),
            ("--cut-off", {"action": "store_true", "help": "also if fewer cells ended than not"}),
        ),
        "gpu-kit": (
            *(_gpu_kit, "gather wheels for a machine without a network"),
            ("python", {"nargs": "?", "default": "3.12", "help": "its version of Python"}),
        ),
        "gpu-record": (_gpu_record, "keep what `make gpu` wrote", folder),
    }


def _number(name: str, text: str, least: int = 1, most: int = 100_000) -> int:
    """Read a number that was given to make."""
    if not text.isdecimal() or not least <= int(text) <= most:
        raise WorkflowError(f"{name} must be a number from {least} to {most}, got {text!r}")
    return int(text)


def _chosen(names: Sequence[str]) -> Sequence[str]:
    """Return these chapters, or all of them if none is named."""
    known = chapters()
    for name in names:
        if name not in known:
            raise WorkflowError(f"no chapter {name!r}; there are {', '.join(known)}")
    return names or known


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


def _claims(options: argparse.Namespace) -> None:
    from workflow import claim

    if other := list(claim.run_all(options.claims)):
        raise WorkflowError("other than the whole chapter found: " + ", ".join(other))


def _seeds(options: argparse.Namespace) -> None:
    from workflow import graph, seeds

    cores, count = _number("CORES", options.cores), _number("SEEDS", options.seeds)
    chosen = [name for name in _chosen(options.chapters.split()) if claims_of(name)]
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
    targets = {name: f"build/refreshed/{name}.ipynb" for name in _chosen(options.chapters)}
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


def _weigh(_: argparse.Namespace) -> None:
    from workflow.weigh import weigh

    weight = weigh(_site())
    print(weight.report())
    if faults := weight.faults():
        raise WorkflowError("\n".join(["the site is heavier than it may be:", *faults]))


def _pdf(_: argparse.Namespace) -> None:
    from workflow import paper

    sheets = paper.print_book(_site(), paper.PDF)
    print(f"The book on {sheets} sheets is {paper.PDF.relative_to(ROOT)}")


def _future(_: argparse.Namespace) -> None:
    from workflow import future

    _site()
    versions = future.build(BUILD / "source")
    told = ("numpy", "sphinx", "torch")
    print(
        "The book and the core work with "
        + ", ".join(line for line in versions if line.lower().partition("==")[0] in told)
    )


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
