# The one graph of the book: chapter -> executed notebook -> claims and staged tree -> site.
#
# `make book` runs it (workflow/graph.py keeps two runs apart). Every rule names one function of
# workflow/step.py. Outputs appear whole or not at all; Snakemake decides what is out of date from
# times, parameters and these rules.

import os

from workflow.parameters import for_chapter
from workflow.project import (
    chapters,
    claims_of,
    modules_used,
    pages,
    source,
    studies_told,
)
from workflow.stage import repository_url, site_url


CHAPTERS = chapters()
STUDY_PARTS = config.get("study_parts", 1)
GIVEN = config.get("parameters", {})
OUT = config.get("folder", "build")  # the tests' book, at another seed, has a folder of its own
# Relative paths: in an absolute one, a folder's braces would be wildcards.
HERE = lambda paths: [os.path.relpath(path) for path in paths]
EXECUTED = expand(f"{OUT}/executed/{{chapter}}.ipynb", chapter=CHAPTERS)


# What takes seconds does not queue for a cluster.
localrules:
    site,
    stage,
    html,
    study_table,


rule site:
    input:
        f"{OUT}/html/index.html",
        f"{OUT}/claims.json",


# A chapter runs again when its cells, the modules it imports, the lock, its own claims or its
# parameters change. The claims are compared by content, so that a new verdict in chapter 3 leaves
# chapter 1 alone.
rule execute:
    input:
        notebook=lambda w: os.path.relpath(source(w.chapter)),
        modules=lambda w: HERE(modules_used(w.chapter)),
        lock="requirements.lock",
    params:
        given=lambda w: for_chapter(w.chapter, GIVEN),
        claims=lambda w: claims_of(w.chapter),
    output:
        f"{OUT}/executed/{{chapter}}.ipynb",
    log:
        f"{OUT}/logs/{{chapter}}.log",
    script:
        "workflow/step.py"


# The stored notebooks: `make refresh` puts what comes out in their place.
rule refresh:
    input:
        notebook=lambda w: os.path.relpath(source(w.chapter)),
        modules=lambda w: HERE(modules_used(w.chapter)),
        lock="requirements.lock",
    params:
        claims=lambda w: claims_of(w.chapter),
    output:
        "build/refreshed/{chapter}.ipynb",
    log:
        "build/logs/refresh-{chapter}.log",
    script:
        "workflow/step.py"


# A chapter at a seed that nobody used in development: `make seeds`. Its verdicts are what is kept.
rule seed:
    input:
        notebook=lambda w: os.path.relpath(source(w.chapter)),
        modules=lambda w: HERE(modules_used(w.chapter)),
        lock="requirements.lock",
    params:
        criteria=lambda w: [entry.get("criteria", []) for entry in claims_of(w.chapter)],
    output:
        "build/seeds/{chapter}/{seed}.json",
    log:
        "build/logs/seed-{chapter}-{seed}.log",
    script:
        "workflow/step.py"


# The tree that Sphinx reads, and what the chapters found, as data: every page that shows a claim
# reads it.
rule stage:
    input:
        executed=EXECUTED,
        stored=HERE(map(source, CHAPTERS)),
        pages=HERE(pages()),
        studies=HERE(studies_told()),
        settings=["_config.yml", "_toc.yml"],
        programs=["workflow/stage.py", "workflow/claims.py"],
    params:
        repository=repository_url(),
        site=site_url(),
    output:
        tree=directory(f"{OUT}/source"),
        claims=f"{OUT}/claims.json",
    script:
        "workflow/step.py"


rule html:
    input:
        f"{OUT}/source",
        "requirements.lock",
        "workflow/site.py",
        "workflow/lighten.py",
    output:
        f"{OUT}/html/index.html",
    log:
        f"{OUT}/logs/site.log",
    script:
        "workflow/step.py"


# The long studies, which no page waits for: `make study STUDY=name` asks for them.
# A part is measured again when the code behind it does something else than it did.
def code_of(wildcards):
    from studies import digests  # imports torch: seconds that a build need not wait

    return digests(wildcards.study)


rule study_part:
    params:
        code=code_of,
        of=STUDY_PARTS,
    output:
        "build/studies/{study}/{part}.pickle",
    log:
        "build/logs/study-{study}-{part}.log",
    script:
        "workflow/step.py"


rule study_table:
    input:
        expand("build/studies/{{study}}/{part}.pickle", part=range(STUDY_PARTS)),
    output:
        "build/studies/{study}.csv",
        "build/studies/{study}.json",
    script:
        "workflow/step.py"
