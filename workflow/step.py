"""What the Snakefile's rules run: each by its name, with what Snakemake hands over.

A step tells the run that started it what a person can mend, in one line and without a traceback.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow.project import FAILURES, WorkflowError, plain


def _execute(job: Any) -> None:
    from workflow.execute import execute

    notebook, output, log = Path(job.input.notebook), Path(job.output[0]), Path(job.log[0])
    execute(notebook, output, log, job.params.given)


def _refresh(job: Any) -> None:
    from workflow.refresh import refresh

    refresh(Path(job.input.notebook), Path(job.output[0]), Path(job.log[0]))


def _seed(job: Any) -> None:
    from workflow.seeds import run

    run(Path(job.input.notebook), int(job.wildcards.seed), Path(job.output[0]), Path(job.log[0]))


def _stage(job: Any) -> None:
    from workflow.claims import collect, write_scripts
    from workflow.stage import stage

    executed = [Path(path) for path in job.input.executed]
    claims, target = Path(job.output.claims), Path(job.output.tree)
    collect(executed, claims)
    stage(executed, claims, target, job.params.repository, job.params.site)
    write_scripts(executed, target / "book" / "_static" / "claims")


def _html(job: Any) -> None:
    from workflow.site import build_site

    build_site(Path(job.input[0]), Path(job.output[0]).parent, Path(job.log[0]))


def _study_part(job: Any) -> None:
    from workflow.study import measure_part

    part, of = int(job.wildcards.part), job.params.of
    measure_part(job.wildcards.study, part, of, Path(job.output[0]))


def _study_table(job: Any) -> None:
    from workflow.study import gather

    gather(job.wildcards.study, [Path(part) for part in job.input], Path(job.output[0]))


_STEPS: dict[str, Callable[[Any], None]] = {
    "execute": _execute,
    "refresh": _refresh,
    "seed": _seed,
    "stage": _stage,
    "html": _html,
    "study_part": _study_part,
    "study_table": _study_table,
}


def main(job: Any) -> None:
    """Carry out the step of a rule; what it raises becomes a line of the run's failures."""
    try:
        _STEPS[job.rule](job)
    except (WorkflowError, OSError) as error:
        with Path(os.environ[FAILURES]).open("a", encoding="utf-8") as stream:
            stream.write(f"{plain(error)}\n")
        sys.exit(1)


if __name__ == "__main__":
    main(globals()["snakemake"])
