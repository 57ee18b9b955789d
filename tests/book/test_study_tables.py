"""What the pages of studies compute from the tables: means, quotients, edges of a search."""

from __future__ import annotations

import pandas as pd
import study_tables

import studies
from lipbook.notebook import verdicts
from lipbook.notebook.curves import quotients
from studies import sn_generation, sn_photographs

SIZES = pd.DataFrame(
    {
        "kind": ["a", "a", "b"],
        "way": ["x", "y", "x"],
        "seed": [0, 1, 0],
        "size": [1.0, 3.0, 14.2],
    }
)


def test_a_result_has_mean_least_greatest_and_seeds():
    lines = study_tables.result(SIZES, "kind == 'a'", "kind", "size").splitlines()
    assert lines[2:4] == ["| kind | size |", "| :-- | --: |"]
    assert lines[4] == '| a | 2.0 <span class="spread">(1.0–3.0)</span> |'
    assert lines[-1] == "Means over 2 seeds; in brackets the lowest and the highest."
    logs = SIZES.rename(columns={"size": "log size"})
    lines = study_tables.result(logs, "kind == 'a'", "kind", "log size").splitlines()
    assert lines[4] == '| a | 7.4 <span class="spread">(2.7–20.1)</span> |'
    assert lines[-1].startswith("Geometric means over 2 seeds;")


def test_where_the_seeds_differ_each_row_has_its_own():
    lines = study_tables.result(SIZES, "size > 0", "kind", "size").splitlines()
    assert lines[2] == "| kind | size | seeds |"
    assert lines[5] == "| b | 14 | 1 |"
    assert lines[-1].startswith("Means over 1 to 2 seeds;")


def test_a_result_across_has_a_dash_where_nothing_was_measured():
    lines = study_tables.result(SIZES, "size > 0", "kind", "size", "way").splitlines()
    assert lines[5] == "| b | 14 | – |"
    assert lines[-1] == "One run each."


def test_columns_of_a_result_may_be_joined_and_renamed():
    told = study_tables.result(SIZES, "size > 5", "kind + way", "size", names="kind + way = which")
    assert told.splitlines()[2:5] == ["| which | size |", "| :-- | --: |", "| b / x | 14 |"]


def test_parts_of_a_text_may_be_columns_of_a_result():
    split = SIZES.assign(what=["a, x", "a, y", "b, x"])
    told = study_tables.result(
        split, "size > 0", "first", "size", "second + kind", split="what = first; second"
    )
    assert told.splitlines()[2:5] == [
        "| first | x / a | y / a | x / b |",
        "| :-- | --: | --: | --: |",
        "| a | 1.0 | 3.0 | – |",
    ]


def test_ratios_are_those_of_the_chapter():
    names = ("SN", "two-sided")
    at = {name: sn_photographs.CHOSEN["patches", name][1] for name in names}
    chosen = " or ".join(f"(method == '{n}' and critic_lr == {lr})" for n, lr in at.items())
    table = studies.load("sn_photographs")
    runs = [
        sn_generation.runs_of(table, "patches", n, sn_photographs.CHOSEN["patches", n])
        for n in names
    ]
    for of, ratio in zip(("steps", "last"), quotients(*runs), strict=True):
        told = study_tables.ratios(
            table, f"seed < 100 and ({chosen})", of, "two-sided", "SN = divided; two-sided = both"
        )
        first, second = told.splitlines()[4:6]
        expected = verdicts.formatted(ratio.to_numpy(), "log").replace(
            " [", ' <span class="spread">['
        )
        assert first == f"| divided | {expected}</span> |"
        assert second == "| both | – |"


SEARCH = pd.DataFrame(
    {"way": [*"aaabbb"], "part": ["tried", "tried", "chosen"] * 2, "lr": [1, 2, 2, 1, 2, 1]}
)


def test_edges_say_which_end_was_chosen_and_of_what_two_values_were_tried():
    where = ("part == 'chosen'", "way", "lr", "part == 'tried'")
    only = "only two values were tried, so that any choice is at the edge."
    told = study_tables.edges(SEARCH, *where, names="lr = step size")
    assert told == f"Of step size {only}"
    third = SEARCH.iloc[[0]].assign(lr=3)
    told = study_tables.edges(pd.concat([SEARCH, third]), *where, names="a = A; b = B")
    assert told == f"Of lr (*B*) {only}"
    more = pd.concat([SEARCH, third, third.assign(way="b")])
    told = study_tables.edges(more, *where, names="lr = step size")
    assert told.splitlines()[2:] == ["- step size 1, the smallest: *b*"]
    inside = pd.concat([more, third.assign(lr=0, way="b")])
    assert study_tables.edges(inside, *where).startswith("No setting")
    one = SEARCH.assign(lr=1)
    assert study_tables.edges(one, *where).startswith("No setting")


def test_a_result_marks_where_most_runs_chose_the_last_that_was_tried():
    runs = [(way, run, lr) for way in "ab" for run in range(3) for lr in (1, 2, 3)]
    table = pd.DataFrame(runs, columns=["way", "run", "lr"])
    best = {"a": (3, 3, 2), "b": (2, 2, 3)}
    at = [best[way][run] for way, run in zip(table["way"], table["run"], strict=True)]
    table = table.assign(right=-abs(table["lr"] - at), test=1.0)
    told = study_tables.result(
        table, "run >= 0", "way", "test", best="right; way; run", edge="lr"
    ).splitlines()
    assert told[4:6] == ["| a | 1.0† |", "| b | 1.0 |"]
    end = "† Most runs chose the largest or the smallest lr that was tried."
    assert told[-1].endswith(end)
    plain = study_tables.result(table.query("lr == 2"), "run >= 0", "way", "test", edge="lr")
    assert "†" not in plain


def test_rows_say_which_choices_have_their_settings():
    table = pd.DataFrame({"way": ["a", "a", "b"], "lr": [0.1, 0.2, 0.1]})
    sets = {"end": {"a": 0.1, "b": 0.1}, "speed": {"b": (0.1,)}}
    assert study_tables.marked(table, "way lr", sets) == ["end", "–", "end, speed"]


def test_rows_may_be_sorted_forwards_and_backwards_and_have_a_note_of_their_own():
    told = study_tables.result(
        SIZES, "size > 0", "kind; way", "size", sort="-kind; way", note="Three toys."
    )
    assert [line[:9] for line in told.splitlines()[4:7]] == ["| b | x |", "| a | x |", "| a | y |"]
    assert told.endswith("Three toys.")


def test_small_means_have_three_decimals_and_minus_signs():
    told = study_tables.result(
        SIZES.assign(size=[-0.0034, 0.00078, 0.0]), "seed == 0", "kind", "size"
    )
    assert "| a | −0.003 |" in told


def test_ratios_may_have_a_row_each_of_some_parts():
    rows = [
        (task, method, seed, step, times * distance)
        for task, times in (("points", 1), ("digits", 2))
        for method, more in (("SN", 2.0), ("both", 1.0))
        for seed in (0, 1)
        for step, distance in ((1, 8.0), (10, more * (1 + seed * (method == "SN"))))
    ]
    table = pd.DataFrame(rows, columns=["task", "method", "seed", "step", "distance"])
    told = study_tables.ratios(
        table,
        "seed < 2",
        "last",
        "both",
        "SN = divided; both = both",
        each="of points if task == 'points'; of digits if task == 'digits'",
    )
    head, _, first, second, _ = told.splitlines()[2:]
    assert head == "| last distance | over both |"
    assert first.replace("of points", "") == second.replace("of digits", "")
    assert first.startswith("| of points | 2.8 ")


def test_of_each_run_the_best_row_counts_and_of_equals_the_last():
    table = pd.DataFrame({"run": [0, 0, 0, 1], "right": [1, 3, 3, 2], "size": [1.0, 2.0, 4.0, 4.0]})
    told = study_tables.result(table.assign(kind="a"), "run < 2", "kind", "size", best="right; run")
    assert told.splitlines()[4] == "| a | 4.0 |"
