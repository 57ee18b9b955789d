"""The HTML in which a claim is shown: its card in a chapter, its row in the ledger.

Every function takes an entry of ``claims.json`` and returns text; nothing here reads a file.
"""

import html
import json
import re
from collections.abc import Callable, Iterable, Sequence

from lipbook.notebook.catalogue import NO_STUDY, NOT_TESTED, QUESTION, Criterion
from lipbook.notebook.results import Entry, Finding, Stated
from lipbook.notebook.verdicts import Outcome

ARTICLE = "https://kexue.fm/archives/6051"
_ROLES = {
    "decides": "What decides it",
    "confines": "What confines it",
    "refutes": "What refutes it",
}
_ASKED = {"<": "below", ">": "above", "≤": "at most", "≥": "at least", "≈": ""}
_STATES = {"met": "met", "reversed": "the other way", "undecided": "undecided", "": "not measured"}
_ORDERS = {
    "before": "committed (as {commit}) before the table of {study} was measured, on {measured}",
    "after": "stated after the table of {study} was measured on {measured}",
    "changed": "changed since the table of {study} was measured on {measured} (commit {commit})",
}
#: schema.org asks for a number: from 1, it fails, to 5, it holds.
_RATINGS = {
    "fails as printed": 1,
    "not reproduced here": 2,
    "undecided": 3,
    "holds with caveats": 4,
    "holds": 5,
}
#: Colour alone tells nothing to one reader in twenty.
_LETTERS = {
    "holds": "H",
    "holds with caveats": "C",
    "fails as printed": "F",
    "not reproduced here": "N",
    "undecided": "U",
    "answered": "A",
    "not tested": "–",
}
#: How a kind of evidence is called in a sentence, where its name alone does not explain it.
_IN_WORDS = {"published": "taken from a publication"}
#: Where a card has the code of its check, which `folds` moves there.
CODE = "<!-- the code of the check -->"
#: From how many words on only the first sentence of a finding stands in the open.
_LONG = 50
text = html.escape


def card(entry: Entry) -> str:
    """Return what stands in a chapter where a claim was checked."""
    said, more = lead(entry.finding)
    return (
        f'<section class="claim-card {css(entry.verdict)}" id="claim-{entry.id}"'
        f' aria-label="Claim {entry.id}">'
        f'<p><span class="claim-id">{entry.id}</span> {text(entry.says)}'
        f' <strong class="claim-verdict">{entry.verdict}</strong></p>'
        f'<p class="claim-finding">{text(said)}</p>'
        f"<details><summary>Numbers and code of {entry.id}</summary>"
        f"{_paragraph('', more)}{details(entry)}"
        f'<p><a href="ledger.html#{entry.id}">{entry.id} in the ledger</a> ·'
        f' <a href="../_static/claims/{entry.id}.py">the check as a script</a></p>{CODE}</details>'
        f"{review(entry)}</section>"
    )


def lead(finding: str) -> tuple[str, str]:
    """Return what stands in the open of a finding, and what is folded: long ones are cut."""
    first, *rest = re.split(r"(?<=\.) (?=[A-Z])", finding, maxsplit=1)
    return (first, *rest) if rest and len(finding.split()) > _LONG else (finding, "")


def row(entry: Entry) -> str:
    """Return a row of the ledger, which opens to everything that is known about the claim."""
    kinds = " ".join(sorted({finding.kind for finding in entry.criteria})) or "none"
    checked = f'<p><a href="{entry.page}">The cell that checks it</a></p>' if entry.page else ""
    finding = entry.reason if entry.verdict == NOT_TESTED else entry.finding
    return (
        f'<details class="claim-row {css(entry.verdict)}" id="{entry.id}"'
        f' data-verdict="{entry.verdict}" data-kind="{kinds}" data-chapter="{entry.chapter}">'
        f'<summary><span class="claim-line"><span class="claim-cell {css(entry.verdict)}">'
        f"{_letter(entry.verdict)} {entry.id}</span> <span>{text(entry.says)}"
        f"{_equations(entry)}</span>"
        f' <strong class="claim-verdict">{entry.verdict}</strong></span></summary>'
        f"<div>{_paragraph('', finding)}{details(entry)}{checked}</div></details>"
    )


def cells(entries: Iterable[Entry]) -> str:
    """Return a list of links, a cell a claim: its verdict's letter and colour, and its id."""
    items = (
        f'<li><a class="claim-cell {css(entry.verdict)}" title="{text(entry.says)}"'
        f' href="{entry.page or f"ledger.html#{entry.id}"}">{_letter(entry.verdict)} {entry.id}'
        f'<span class="claim-word">: {entry.verdict}</span></a></li>'
        for entry in entries
    )
    return f"<ul>{''.join(items)}</ul>"


def legend(counts: dict[str, int]) -> str:
    """Return what the letters of `cells` mean, and how many claims have each verdict."""
    items = (
        f'<li><a href="ledger.html?verdict={word.replace(" ", "%20")}">'
        f'<span class="claim-cell {css(word)}">{_letter(word)}</span> {word}</a>: {count}</li>'
        for word, count in counts.items()
        if count
    )
    return f'<ul class="claim-legend">{"".join(items)}</ul>'


def details(entry: Entry) -> str:
    """Return scope, criteria with their numbers, other seeds, planted world and provenance."""
    parts = [_paragraph("Tried on", entry.scope)]
    for role, heading in _ROLES.items():
        found = [criterion(finding) for finding in entry.criteria if finding.role == role]
        if found:
            parts.append(f"<p>{heading}</p><ul>{''.join(found)}</ul>")
    if entry.planned:
        items = "".join(map(planned, entry.planned))
        parts.append(f"<p>Planned, and not measured yet</p><ul>{items}</ul>")
    parts += [_tables(entry), _seeds(entry), _flip(entry), _run(entry)]
    return "".join(parts)


def criterion(finding: Finding) -> str:
    """Return one criterion as an item of a list: its number, its bound, its kind, its outcome."""
    notes = [finding.kind]
    if finding.scale == "log":
        notes.append("geometric mean")
    if finding.p is not None:
        notes.append(corrected(finding.p))
    notes += [outcome(finding), *history(finding), *changes(finding)]
    words = f"{finding.quantity}: {found(finding)}; asked: {asked(finding)}"
    return f"<li>{text(words)} {_muted(notes)}</li>"


def table(
    findings: Iterable[Finding],
    notes: Callable[[Finding], Sequence[str]] = lambda _: (),
    bound: str = "asked",
) -> str:
    """Return criteria as a table: what was found, what was asked, what follows, and notes."""
    heads = "".join(f"<th>{head}</th>" for head in ("quantity", "found", bound, "outcome"))
    rows = "".join(
        f"<tr><td>{text(f.quantity)} {_muted(notes(f))}</td><td>{text(found(f))}</td>"
        f'<td data-head="{bound}: ">{text(asked(f))}</td><td>{text(outcome(f))}</td></tr>'
        for f in findings
    )
    return (
        f'<table class="table stacked claim-table"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def found(finding: Finding) -> str:
    """Return what was found, with its interval."""
    if not finding.values:
        return "not measured"
    values = tuple(map(float, finding.values))
    return _minus(Outcome(finding, values, finding.p, "met").formatted)


def asked(criterion: Criterion) -> str:
    """Return the relation and the bound in words, such as "below 0"."""
    rule = criterion.rule.removeprefix(criterion.relation)
    return _minus(f"{_ASKED[criterion.relation]}{rule}".strip())


def outcome(finding: Finding) -> str:
    """Return whether a criterion is met, and at how many seeds by itself."""
    seeds = len(finding.values)
    counted = f" ({finding.seeds_held} of {seeds})" if seeds > 1 else ""
    return _STATES[finding.state] + counted


def history(finding: Finding) -> list[str]:
    """Return how a criterion and its tables came after one another, and where it comes from."""
    notes = [came_about(stated) for stated in finding.stated]
    if finding.after_the_fact and not any(s.order == "after" for s in finding.stated):
        notes.append("stated after the fact")
    return [*notes, finding.source] if finding.source else notes


def changes(finding: Finding) -> list[str]:
    """Return what a criterion was before, and why it was changed."""
    return [f"until {c.date}: {c.before}, changed because {c.reason}" for c in finding.changed]


def came_about(stated: Stated) -> str:
    """Return how a criterion and a table came after one another."""
    words = _ORDERS[stated.order].format(**stated.model_dump())
    return words.replace("the table", "what it judges in the table") if stated.later else words


def corrected(p: float) -> str:
    """Return a p-value after Holm's correction."""
    return f"p {'< 0.001' if p < 0.001 else f'= {p:.2g}'} after Holm"


def planned(criterion: Criterion) -> str:
    """Return a criterion that waits for its table as an item of a list."""
    words = f"{criterion.quantity}; asked: {asked(criterion)}"
    return f"<li>{text(words)} {_muted([criterion.role, 'planned, not measured'])}</li>"


def evidence_sentence(counts: dict[str, int], early: int) -> str:
    """Return how many criteria there are of each kind, and how many stood before a measurement."""
    parts = [f"{n} {_IN_WORDS.get(kind, kind)}" for kind, n in counts.items() if n]
    listed = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
    return (
        f"The verdicts rest on {sum(counts.values())} criteria: {listed}. A proof or a"
        " computation comes out the same at every seed; the *measured* ones depend on chance, and"
        f" carry intervals. Of the measured ones, {early} were written down before the measurement"
        f" and {counts['measured'] - early} after it; each says which."
    )


def filters(entries: Iterable[Entry], titles: dict[str, str]) -> str:
    """Return the ledger's three menus, which stay hidden unless a script can use them."""
    entries = list(entries)
    kinds = [k for k in ("proved", "computed", "measured", "published") if _has_kind(entries, k)]
    menus = {
        "verdict": {word: word for word in dict.fromkeys(e.verdict for e in entries)},
        "kind": {kind: kind for kind in kinds},
        "chapter": {name: titles[name] for name in sorted({e.chapter for e in entries})},
    }
    fields = []
    for name, choices in menus.items():
        options = "".join(
            f'<option value="{value}">{text(label)}</option>' for value, label in choices.items()
        )
        fields.append(
            f"<label>{name.capitalize()} <select name={name}>"
            f'<option value="">all</option>{options}</select></label>'
        )
    return (
        f'<form class="claim-filters" hidden>{"".join(fields)}'
        ' <output aria-live="polite"></output></form>'
    )


def review(entry: Entry) -> str:
    """Return the verdict as a ClaimReview of schema.org, in JSON-LD."""
    rating: dict[str, object] = {"@type": "Rating", "alternateName": entry.verdict}
    if entry.kind != QUESTION and entry.verdict in _RATINGS:
        rating |= {"ratingValue": _RATINGS[entry.verdict], "bestRating": 5, "worstRating": 1}
    data = {
        "@context": "https://schema.org",
        "@type": "ClaimReview",
        "url": f"{entry.chapter}.html#claim-{entry.id}",
        "claimReviewed": entry.says,
        "itemReviewed": {
            "@type": "Claim",
            "author": {"@type": "Person", "name": "Su Jianlin"},
            "datePublished": "2018-10-07",
            "appearance": {"@type": "CreativeWork", "url": ARTICLE},
        },
        "reviewRating": rating,
        "reviewBody": entry.finding,
        "author": {"@type": "Organization", "name": "The lipbook authors"},
    }
    spelt = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/ld+json">{spelt}</script>'


def css(verdict: str) -> str:
    """Return a verdict as a class."""
    return verdict.replace(" ", "-")


def _letter(verdict: str) -> str:
    return f'<b aria-hidden="true">{_LETTERS[verdict]}</b>'


def _equations(entry: Entry) -> str:
    numbers = ", ".join(map(str, entry.equations))
    return f' <span class="claim-equations">eq. {numbers}</span>' if numbers else ""


def _muted(notes: Sequence[str]) -> str:
    return f'<span class="claim-notes">{text("; ".join(notes))}</span>' if notes else ""


def _minus(number: str) -> str:
    """Return a number with the sign that stands for minus, exponents left as they are."""
    return re.sub(r"(?<![\de])-(?=\d)", "−", number)


def _paragraph(heading: str, content: str) -> str:
    label = f"<em>{heading}:</em> " if heading else ""
    return f"<p>{label}{text(content.strip())}</p>" if content.strip() else ""


def _tables(entry: Entry) -> str:
    """Return links to the pages of the studies that a claim rests on."""
    links = ", ".join(f'<a href="studies/{name}.html">{name}</a>' for name in entry.studies)
    return f"<p><em>Measured in the study:</em> {links}</p>" if links else ""


def _seeds(entry: Entry) -> str:
    if entry.seeds is None:
        return ""
    s = entry.seeds
    words = f"at {s.held} of {s.of} other seeds the verdict was the same"
    if any(finding.kind == "measured" for finding in entry.criteria):
        low, high = (f"{100 * share:.0f}" for share in (s.low, s.high))
        words += f" (95 % interval of the share: {low} to {high} %)"
    if s.others:
        words += "; otherwise " + ", ".join(f"{word} ({n})" for word, n in s.others.items())
    elif from_tables(entry):
        words = (
            "the measured numbers come from stored tables and do not depend on the chapter's seed"
        )
    return _paragraph("Other seeds", f"{words}.")


def from_tables(entry: Entry) -> bool:
    """Whether whatever chance decides was decided when a study's table was measured."""
    measured = [finding for finding in entry.criteria if finding.kind == "measured"]
    return bool(entry.studies and measured) and all(f.study != NO_STUDY for f in measured)


def _flip(entry: Entry) -> str:
    if entry.flip is None:
        return ""
    f = entry.flip
    words = f"{f.world} The same criteria then say: {f.verdict} ({f.date})."
    return _paragraph("A planted world", words)


def _run(entry: Entry) -> str:
    if entry.run is None:
        return ""
    r = entry.run
    return _paragraph("This build", f"seed {r.seed}, {r.device}, scale {r.scale}.")


def _has_kind(entries: list[Entry], kind: str) -> bool:
    return any(finding.kind == kind for entry in entries for finding in entry.criteria)
