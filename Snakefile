# The one graph of the book: chapter -> executed notebook -> claims -> staged tree -> site.
#
# `make book` runs it (workflow/graph.py keeps two runs apart). Every rule calls one command of
# `python -m workflow`, so each step can be run and read by itself. Outputs appear whole or not at
# all; Snakemake decides what is out of date from times, parameters and these rules.

import json
import sys

from workflow.parameters import for_chapter
from workflow.project import chapters, claims_of, modules_used, pages, source
from workflow.stage import repository_url


CHAPTERS = chapters()
STUDY_PARTS = config.get("study_parts", 1)
GIVEN = config.get("parameters", {})
PYTHON = f"{sys.executable} -m workflow"
EXECUTED = expand("build/executed/{chapter}.ipynb", chapter=CHAPTERS)


rule site:
    input:
        "build/html/index.html",
        "build/claims.json",


# A chapter runs again when its cells, the modules it imports, the lock, its own claims or its
# parameters change. The claims are compared by content, so that a new verdict in chapter 3 leaves
# chapter 1 alone.
rule execute:
    input:
        notebook=lambda w: source(w.chapter),
        modules=lambda w: modules_used(w.chapter),
        lock="requirements.lock",
    params:
        given=lambda w: json.dumps(for_chapter(w.chapter, GIVEN)),
        claims=lambda w: json.dumps(claims_of(w.chapter)),
    output:
        "build/executed/{chapter}.ipynb",
    log:
        "build/logs/{chapter}.log",
    shell:
        "{PYTHON} execute {wildcards.chapter} --output {output} --log {log}"
        " --parameters {params.given:q}"


rule claims:
    input:
        EXECUTED,
    output:
        "build/claims.json",
    shell:
        "{PYTHON} records {input} --output {output}"


rule stage:
    input:
        executed=EXECUTED,
        pages=pages(),
        settings=["_config.yml", "_toc.yml"],
    params:
        repository=repository_url(),
    output:
        directory("build/source"),
    shell:
        "{PYTHON} stage {input.executed} --target {output} --repository={params.repository:q}"


rule html:
    input:
        "build/source",
        "requirements.lock",
    output:
        "build/html/index.html",
    log:
        "build/logs/site.log",
    shell:
        "{PYTHON} site {input[0]} --target build/html --log {log}"


# The long studies, which no page waits for: `make study STUDY=name` asks for them.
# A part is measured again when the code behind it does something else than it did.
def code_of(wildcards):
    from studies import digests  # imports torch: seconds that a build need not wait

    return json.dumps(digests(wildcards.study))


rule study_part:
    params:
        code=code_of,
    output:
        "build/studies/{study}/{part}.pickle",
    log:
        "build/logs/study-{study}-{part}.log",
    shell:
        "{PYTHON} study-part {wildcards.study} --part {wildcards.part} --of {STUDY_PARTS}"
        " --output {output} 2> {log}"


rule study_table:
    input:
        expand("build/studies/{{study}}/{part}.pickle", part=range(STUDY_PARTS)),
    output:
        "build/studies/{study}.csv",
        "build/studies/{study}.json",
    shell:
        "{PYTHON} study-table {wildcards.study} {input} --target {output[0]}"
