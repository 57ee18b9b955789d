"""Tables of what came out of a study, in Markdown: means, quotients, edges; and strips of pictures.

What `study_page` shows by ``{study-result}``, ``{study-ratios}``, ``{study-edges}`` and
``{study-pictures}``.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lipbook.notebook.curves import quotients
from lipbook.notebook.verdicts import formatted

DAGGER = "†"


def table_of(rows: Sequence[Sequence[str]], style: str, sides: Sequence[str] | None = None) -> str:
    """Return a table in Markdown: its first row is the head, and its first column on the left."""
    sides = sides or [":--", *["--:"] * (len(rows[0]) - 1)]
    lines = [f"| {' | '.join(line)} |" for line in (rows[0], sides, *rows[1:])]
    return "\n".join([":::{table}", f":class: {style}", *lines, ":::"])


def result(
    table: pd.DataFrame,
    where: str,
    rows: str,
    values: str,
    across: str = "",
    best: str = "",
    names: str = "",
    over: str = "",
    split: str = "",
    edge: str = "",
    sort: str = "",
    note: str = "",
) -> str:
    """Return means over some rows of a table, with the lowest and the highest, in Markdown.

    Parameters
    ----------
    table : pandas.DataFrame
        Of a study.
    where : str
        Which rows, as `pandas.DataFrame.query` reads it.
    rows, values : str
        Columns, with semicolons between them: what has a row each ("a + b" puts two columns into
        one), and what is averaged; of a column "log x", exp of the mean.
    across : str
        A column whose values have a column each, if one is averaged ("a + b" as in `rows`).
    best : str
        A column, and those that name a run: of each run only the row counts where the first is
        largest, and of equals the last.
    names : str
        What heads and entries are called, such as "lr = step size; none = no".
    over : str
        The column of what the means are over, if not of the seeds.
    split : str
        A column of texts with commas, and what its parts are called: "method = quantity; place".
    edge : str
        A setting: where more than half of the runs have the smallest or the largest value of it
        that was tried, their mean is marked with a dagger.
    sort : str
        Columns by whose values the rows are sorted, with semicolons between them; "-a" backwards.
    note : str
        What stands below the table, if not what the means are over.
    """
    keys, shown = rows.split("; "), values.split("; ")
    called = _called(names)
    every = table.query(where).copy()
    if sort:
        by = {column.lstrip("-"): not column.startswith("-") for column in sort.split("; ")}
        every = every.sort_values([*by], ascending=[*by.values()], kind="stable")
    if split:
        whole, parts = split.split(" = ")
        every[parts.split("; ")] = every[whole].str.split(", ", expand=True)
    for key in (key for key in (*keys, across) if " + " in key):
        every = every.assign(**{key: every[key.split(" + ")].map(_key).agg(" / ".join, axis=1)})
    part = _best(every, best)
    by = keys + [across] * bool(across)
    groups = part.groupby(by, sort=False)
    found = groups[shown].agg(_spread)
    if edge:
        tried = every.groupby(by)[edge].agg(["min", "max", "nunique"]).loc[found.index]
        own = part.set_index(by)[edge]
        at = {key: _at_edge(own.loc[[key]], *tried.loc[key]) for key in found.index}
        found[shown[0]] = [
            re.sub(r"^\S+", rf"\g<0>{DAGGER}" if at[key] else r"\g<0>", told)
            for key, told in found[shown[0]].items()
        ]
    counts = groups[over or ("run" if "run" in part else "seed")].nunique()
    if across:
        found = found[shown[0]].unstack(across, "–")[list(part[across].unique())]
    elif counts.nunique() > 1:
        found[_plural(over)] = counts.astype(str)
    found = found.reset_index().rename(columns=called).map(_key)
    heads = [str(name).removeprefix("log ").replace("_", " ") for name in found]
    sides = [":--"] * len(keys) + ["--:"] * (len(heads) - len(keys))
    cells = [heads, *found.replace(called).to_numpy()]
    style = "compact across" if len(heads) - len(keys) > 3 else "compact"
    told = note or _averaged(shown, sorted(counts.unique()), _plural(over))
    if edge and any(at.values()):
        told += f" {DAGGER} Most runs chose the largest or the smallest {edge} that was tried."
    return f"{table_of(cells, style, sides)}\n\n{told}"


def marked(table: pd.DataFrame, columns: str, sets: Mapping[str, Mapping[Any, Any]]) -> list[str]:
    """Return of each row of a table by which choices it has its settings, or a dash.

    Parameters
    ----------
    table : pandas.DataFrame
        Of a study.
    columns : str
        Those of the settings, with spaces between them, in the order of the choices.
    sets : mapping
        Choices of a study, by what they are called: of a task and a method, or of a method alone,
        the settings.
    """
    known = {told: {_flat(item) for item in choice.items()} for told, choice in sets.items()}
    rows = zip(*(table[column] for column in columns.split()), strict=True)
    return [", ".join(told for told, kept in known.items() if row in kept) or "–" for row in rows]


def ratios(table: pd.DataFrame, where: str, of: str, to: str, names: str, each: str = "") -> str:
    """Return methods over some of them, seed by seed, in steps or last distances, in Markdown.

    The steps are those to 1.25 times the larger of two methods' mean last distances, by a line
    between logarithms, and the last ones for a run that never comes down to it.

    Parameters
    ----------
    table : pandas.DataFrame
        With the columns method, seed, step and distance.
    where : str
        Which rows, as `pandas.DataFrame.query` reads it.
    of : {"steps", "last"}
        What is divided.
    to : str
        Methods, with semicolons between them.
    names : str
        What each method is called, such as "SN = plain", in the order of the rows.
    each : str
        Parts of the table that have a row each, of the first method: "points if task == 'ring'".
    """
    called = _called(names)
    others, heads = to.split("; "), {"steps": "steps", "last": "last distance"}
    lines = [[heads[of], *(f"over {called[other]}" for other in others)]]
    kept = table.query(where)
    if each:
        first = next(iter(called))
        for label, query in (part.split(" if ") for part in each.split("; ")):
            runs = _runs(kept.query(query))
            lines.append([label, *(_over(runs[first], runs[other], of) for other in others)])
    else:
        runs = _runs(kept)
        for method, name in called.items():
            lines.append([name, *(_over(runs[method], runs[other], of) for other in others)])
    return table_of(lines, "compact across")


def edges(
    table: pd.DataFrame,
    chosen: str,
    rows: str,
    settings: str,
    tried: str = "",
    names: str = "",
) -> str:
    """Return which settings were chosen at the edge of what was tried, in Markdown.

    Of two values any choice is at the edge: of which settings only two were tried is said once.

    Parameters
    ----------
    table : pandas.DataFrame
        Of a study.
    chosen, tried : str
        Which rows have the settings that were chosen, and which those that were tried, if others.
    rows, names : str
        As in `result`: whose settings they are.
    settings : str
        Columns, with semicolons between them.
    """
    called, keys = _called(names), rows.split("; ")
    taken, search = table.query(chosen), table.query(tried or chosen)
    searches = dict(iter(search.groupby(keys)))
    found: dict[str, list[str]] = {}
    two: dict[str, list[str]] = {}
    owners = dict(iter(taken.groupby(keys, sort=False)))
    for key, own in owners.items():
        who = f"*{', '.join(called.get(part, part) for part in map(_key, key))}*"
        for setting in settings.split("; "):
            values, told = sorted(searches[key][setting].unique()), called.get(setting, setting)
            if len(values) == 2:
                two.setdefault(told, []).append(who)
                continue
            for value, end in ((values[0], "smallest"), (values[-1], "largest")):
                if len(values) > 2 and (own[setting] == value).any():
                    found.setdefault(f"{told} {number(value)}, the {end}", []).append(who)
    lines = [f"- {head}: {'; '.join(whose)}" for head, whose in found.items()]
    shared: dict[str, list[str]] = {}
    for told, whose in two.items():
        who = "" if len(whose) == len(owners) else f" ({'; '.join(whose)})"
        shared.setdefault(who, []).append(told)
    parts = [" and ".join(told) + who for who, told in shared.items()]
    only = (
        f"Of {' and '.join(parts)} only two values were tried, so that any choice is at the edge."
    )
    if not found:
        return only if two else "No setting was chosen at the edge of what was tried."
    listed = "\n".join(["Chosen at the edge of what was tried:\n", *lines])
    return f"{listed}\n\n{only}" if two else listed


def pictures(root: Path, name: str, where: str, rows: str, alt: str, names: str = "") -> str:
    """Return a strip of six generated images for each grid that a study has kept, as HTML.

    Parameters
    ----------
    root : Path
        The folder with ``book``.
    name : str
        The study's.
    where, rows, names : str
        As in `result`.
    alt : str
        What can be seen in all of the strips.
    """
    path = root / "book" / "studies" / "pictures" / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    grids = pd.DataFrame([{**k["cell"], "step": k["step"], "png": k["png"]} for k in kept])
    called = _called(names)
    parts = []
    for _, grid in grids.query(where).sort_values(rows.split("; "), kind="stable").iterrows():
        label = ", ".join(called.get(key, key) for key in map(_key, grid[rows.split("; ")]))
        image = Image.open(io.BytesIO(base64.b64decode(grid["png"])))
        strip = io.BytesIO()
        six = image.crop((0, 0, image.width, image.height // 2)).convert("RGB")
        six.save(strip, "webp", lossless=True)
        source = base64.b64encode(strip.getvalue()).decode()
        told = f'<img alt="{label}: {alt}" src="data:image/webp;base64,{source}">'
        parts.append(f"<figcaption>{label}</figcaption>{told}")
    return f'<figure class="strips">{"".join(parts)}</figure>'


def _runs(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the distances of each method, one row a seed and one column a step."""
    groups = rows.groupby("method")
    return {method: own.pivot_table("distance", "seed", "step") for method, own in groups}


def _flat(item: tuple[Any, Any]) -> tuple[Any, ...]:
    """Return the key and the value of a choice as one tuple."""
    return sum((part if isinstance(part, tuple) else (part,) for part in item), ())


def _at_edge(own: pd.Series, low: float, high: float, count: int) -> bool:
    """Return whether more than half of some runs have an end of what was tried."""
    return count > 1 and max((own == low).mean(), (own == high).mean()) > 0.5


def _called(names: str) -> dict[str, str]:
    return dict(pair.split(" = ") for pair in names.split("; ") if pair)


def _spread(column: pd.Series) -> str:
    """Return the mean of a column, and the lowest and the highest if they differ."""
    low, middle, high = column.min(), column.mean(), column.max()
    if str(column.name).startswith("log "):
        low, middle, high = np.exp([low, middle, high])
    told = _digits(middle).replace("-", "−")
    places = len(told.partition(".")[2])
    ends = [f"{end:,.{places}f}".replace("-", "−") for end in (low, high)]
    spread = f' <span class="spread">({"–".join(ends)})</span>'
    return told if ends[0] == ends[1] else told + spread


def _best(rows: pd.DataFrame, best: str) -> pd.DataFrame:
    """Return of each run the row where a score is largest, and of equals the last, if so asked."""
    if not best:
        return rows.copy()
    score, *run = best.split("; ")
    return rows.loc[sorted(rows[::-1].groupby(run, sort=False)[score].idxmax())]


def _over(runs: pd.DataFrame, others: pd.DataFrame, of: str) -> str:
    """Return the quotient of two methods with its interval, or a dash of a method to itself."""
    if runs.equals(others):
        return "–"
    found = getattr(quotients(runs, others), of)
    middle, interval = formatted(found.to_numpy(), "log").split(" ", 1)
    return f'{middle} <span class="spread">{interval}</span>'


def _averaged(shown: list[str], counts: list[int], each: str) -> str:
    """Return a sentence on what a table's means are over, and how many."""
    if counts == [1]:
        return "One run each."
    logarithms = [name.removeprefix("log ") for name in shown if name.startswith("log ")]
    kind = "Geometric means" if len(logarithms) == len(shown) else "Means"
    of = f" (geometric of the {logarithms[0]})" if logarithms and kind == "Means" else ""
    return f"{kind}{of} over {_range(counts)} {each}; in brackets the lowest and the highest."


def _range(counts: list[int]) -> str:
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _plural(over: str) -> str:
    return f"{over or 'seed'}s"


def _digits(value: float) -> str:
    """Return a number to two digits, three decimals at most, or a dash if there is none."""
    if value != value:
        return "–"
    if 0 < abs(value) < 0.01:
        return f"{value:.3f}"
    return f"{value:,.0f}" if round(abs(value), 1) >= 10 else f"{value:#.2g}"


def _key(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Return a number to three digits, or whole, with a minus sign."""
    told = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return told.replace("-", "−", 1) if value < 0 else told
