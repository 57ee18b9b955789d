"""The rule from criteria to a verdict, and what stands under it: intervals, states, Holm."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lipbook.notebook import verdicts
from lipbook.notebook.catalogue import (
    ANSWERED,
    CAVEATS,
    FAILS,
    HOLDS,
    KINDS_OF_EVIDENCE,
    NOT_REPRODUCED,
    NOT_TESTED,
    QUESTION,
    UNDECIDED,
    Claim,
    Criterion,
)

SPREAD = [0.0, 1.0, 2.0]  # its interval contains 1
#: Values that bring a measured criterion "< 1" into each state.
VALUES = {"met": [0.1, 0.2, 0.3], "reversed": [2.1, 2.2, 2.3], "undecided": SPREAD}


def criterion(**given: Any) -> Criterion:
    facts = {"id": "x", "quantity": "size", "kind": "measured", "relation": "<", "bound": 1.0}
    facts |= {"role": "decides", **given}
    if facts["kind"] == "published":
        facts["source"] = "someone2018, table 1"
    return Criterion(**facts)


def claim(*criteria: Criterion, kind: str = "experiment") -> Claim:
    """Return a claim without its words: the rule reads nothing but kind and criteria."""
    return Claim.model_construct(id="T1", kind=kind, criteria=criteria, verdict=HOLDS)


def judged(*roles_kinds_states: tuple[str, str, str], kind: str = "experiment") -> str:
    """Return the verdict of criteria with these roles and kinds, brought into these states."""
    criteria, values = [], {}
    for number, (role, evidence, state) in enumerate(roles_kinds_states):
        criteria.append(criterion(id=f"c{number}", role=role, kind=evidence))
        values[f"c{number}"] = VALUES[state]
    one = claim(*criteria, kind=kind)
    outcomes = verdicts.judge(one, values)
    assert [o.state for o in outcomes] == [state for _, _, state in roles_kinds_states]
    return verdicts.verdict(one, outcomes)[0]


# --- the rule

STATES = {
    kind: ("met", "reversed", "undecided") if kind == "measured" else ("met", "reversed")
    for kind in KINDS_OF_EVIDENCE
}
ITEMS = [
    (role, kind, state)
    for role in ("decides", "confines", "refutes")
    for kind in KINDS_OF_EVIDENCE
    for state in STATES[kind]
]


def expected(items: list[tuple[str, str, str]]) -> str:
    """Say the rule again, by sets, for every combination."""
    have = set(items)
    role_states = {(role, state) for role, _, state in have}
    if ("refutes", "met") in role_states:
        return FAILS
    if have & {("decides", "proved", "reversed"), ("decides", "computed", "reversed")}:
        return FAILS
    if ("decides", "reversed") in role_states:
        return NOT_REPRODUCED
    if ("decides", "undecided") in role_states:
        return UNDECIDED
    return CAVEATS if ("confines", "met") in role_states else HOLDS


@pytest.mark.parametrize("items", [*itertools.combinations_with_replacement(ITEMS, 2)])
def test_two_criteria_of_every_role_kind_and_state(items):
    assert judged(*items) == expected(items)


@given(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=5))
def test_any_number_of_criteria(items):
    outcomes = [
        verdicts.Outcome(criterion(id=f"c{n}", role=role, kind=kind), (0.0,), None, state)
        for n, (role, kind, state) in enumerate(items)
    ]
    one = claim(*(o.criterion for o in outcomes))
    assert verdicts.verdict(one, outcomes)[0] == expected(items)
    assert verdicts.verdict(one, outcomes[::-1])[0] == expected(items)


@pytest.mark.parametrize(
    ("items", "word"),
    [
        ([("decides", "measured", "met")], HOLDS),
        ([("decides", "proved", "reversed")], FAILS),
        ([("decides", "computed", "reversed")], FAILS),
        ([("decides", "measured", "reversed")], NOT_REPRODUCED),
        ([("decides", "published", "reversed")], NOT_REPRODUCED),
        ([("decides", "measured", "reversed"), ("decides", "computed", "reversed")], FAILS),
        ([("decides", "measured", "undecided")], UNDECIDED),
        ([("decides", "measured", "undecided"), ("confines", "computed", "met")], UNDECIDED),
        (
            [("decides", "measured", "undecided"), ("decides", "measured", "reversed")],
            NOT_REPRODUCED,
        ),
        ([("decides", "measured", "met"), ("confines", "measured", "met")], CAVEATS),
        ([("decides", "measured", "met"), ("confines", "measured", "reversed")], HOLDS),
        ([("decides", "measured", "met"), ("confines", "measured", "undecided")], HOLDS),
        ([("decides", "measured", "met"), ("refutes", "computed", "met")], FAILS),
        ([("decides", "measured", "met"), ("refutes", "computed", "reversed")], HOLDS),
        ([("decides", "measured", "met"), ("refutes", "measured", "undecided")], HOLDS),
        ([("confines", "measured", "met"), ("refutes", "measured", "met")], FAILS),
    ],
)
def test_the_rule_by_cases(items, word):
    assert judged(*items) == word


@pytest.mark.parametrize(
    ("items", "word"),
    [
        ([("decides", "measured", "met")], ANSWERED),
        ([("decides", "measured", "reversed")], ANSWERED),  # the answer may be no
        ([("decides", "computed", "reversed"), ("confines", "measured", "met")], ANSWERED),
        ([("decides", "measured", "met"), ("decides", "measured", "undecided")], UNDECIDED),
        ([("decides", "measured", "met"), ("confines", "measured", "undecided")], UNDECIDED),
        ([("decides", "measured", "met"), ("refutes", "measured", "met")], ANSWERED),
    ],
)
def test_an_open_question_is_answered_either_way(items, word):
    assert judged(*items, kind=QUESTION) == word


@pytest.mark.parametrize("kind", ["experiment", QUESTION])
def test_without_criteria_nothing_is_tested(kind):
    assert verdicts.verdict(claim(kind=kind), []) == (NOT_TESTED, [])


@pytest.mark.parametrize(
    ("kind", "role", "state", "word"),
    [
        ("experiment", "decides", "met", CAVEATS),
        ("experiment", "confines", "met", HOLDS),
        ("experiment", "decides", "reversed", NOT_REPRODUCED),
        (QUESTION, "decides", "met", UNDECIDED),
        (QUESTION, "confines", "met", ANSWERED),
    ],
)
def test_what_is_planned_and_would_decide_leaves_nothing_plain(kind, role, state, word):
    asked, later = criterion(), criterion(id="later", role=role)
    one = claim(asked, kind=kind).model_copy(update={"planned": (later,)})
    outcomes = verdicts.judge(one, {"x": VALUES[state]})
    assert verdicts.verdict(one, outcomes)[0] == word


def test_the_verdict_names_the_criteria_that_made_it():
    one = claim(
        criterion(id="fine"),
        criterion(id="against", role="refutes", kind="computed"),
        criterion(id="narrows", role="confines"),
    )
    values = {"fine": [0.1, 0.2], "against": 0.5, "narrows": [0.4, 0.41]}
    word, because = verdicts.verdict(one, verdicts.judge(one, values))
    assert (word, [o.criterion.id for o in because]) == (FAILS, ["against"])


# --- states and intervals

numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
some = st.lists(numbers, min_size=2, max_size=12)


@given(some)
def test_the_interval_is_students(values):
    low, high = verdicts.interval(values)
    if len(set(values)) == 1:
        assert low == high == values[0]
        return
    expected = stats.ttest_1samp(values, np.mean(values)).confidence_interval(0.95)
    within = 1e-9 * (1 + np.abs(values).max())
    assert (low, high) == pytest.approx(tuple(expected), abs=within)


@given(st.lists(st.floats(0.01, 100).map(lambda x: round(x, 3)), min_size=2, max_size=12))
def test_on_the_scale_log_the_interval_is_that_of_the_logarithms(values):
    low, high = verdicts.interval(values, "log")
    assert (math.log(low), math.log(high)) == pytest.approx(verdicts.interval([*np.log(values)]))
    turned = verdicts.interval([1 / v for v in values], "log")
    assert turned == pytest.approx((1 / high, 1 / low))


@given(numbers)
def test_one_value_is_its_own_interval(value):
    assert verdicts.interval([value]) == (value, value)


@pytest.mark.parametrize("relation", ["≤", "≥", "<", ">", "≈"])
@given(values=some.filter(lambda row: len(row) > 2), bound=numbers.filter(bool))
def test_a_single_measured_criterion_is_met_when_its_whole_interval_is(relation, values, bound):
    asked = criterion(relation=relation, bound=bound, tolerance=0.5 if relation == "≈" else 0)
    one = claim(asked)
    (outcome,) = verdicts.judge(one, {"x": values})
    low, high = outcome.interval
    edges = asked.edges
    if any(math.isclose(end, edge, rel_tol=1e-6) for end in (low, high) for edge in edges):
        return
    apart = all(not low <= edge <= high for edge in edges)
    if not apart:
        assert outcome.state == "undecided"
    else:
        assert outcome.state == ("met" if asked.holds_for((low + high) / 2) else "reversed")
    assert outcome.seeds_held == sum(map(asked.holds_for, values))


def test_the_scale_may_decide():
    """All are above 1, and one of them so far that the mean's own interval reaches below 1."""
    values = {"x": [2.0, 3.0, 4.0, 5.0, 40.0]}
    (linear,) = verdicts.judge(claim(criterion(relation=">")), values)
    (log,) = verdicts.judge(claim(criterion(relation=">", scale="log")), values)
    assert (linear.state, log.state) == ("undecided", "met")


@pytest.mark.parametrize("kind", ["proved", "computed", "published"])
def test_what_is_not_measured_has_no_interval_and_falls_by_one_value(kind):
    one = claim(criterion(kind=kind))
    assert [o.p for o in verdicts.judge(one, {"x": SPREAD})] == [None]
    assert verdicts.judge(one, {"x": [0.1, 0.9]})[0].state == "met"
    assert verdicts.judge(one, {"x": [0.1, 1.1]})[0].state == "reversed"


@pytest.mark.parametrize(
    ("relation", "value", "state"),
    [
        *[("≤", 1.0, "met"), ("≥", 1.0, "met"), ("<", 1.0, "reversed"), (">", 1.0, "reversed")],
        *[("≈", 1.009, "met"), ("≈", 1.02, "reversed"), ("≈", -1.0, "reversed")],
    ],
)
@pytest.mark.parametrize("kind", ["computed", "measured"])
def test_a_single_value_or_equal_ones_at_the_bound(relation, value, state, kind):
    asked = criterion(relation=relation, kind=kind, tolerance=0.01 if relation == "≈" else 0)
    for values in (value, [value] * 3):
        (outcome,) = verdicts.judge(claim(asked), {"x": values})
        few = kind == "measured" and values is value
        assert outcome.state == ("undecided" if few else state)


@pytest.mark.parametrize("values", [0.1, [0.1, 0.1], [0.1, 0.11], [2.0, 2.1]])
def test_a_measurement_of_fewer_than_three_values_decides_nothing(values):
    (outcome,) = verdicts.judge(claim(criterion()), {"x": values})
    assert (outcome.state, outcome.p) == ("undecided", None)


def test_the_target_zero():
    asked = criterion(relation="≈", bound=0, tolerance=0.1, kind="computed")
    assert verdicts.judge(claim(asked), {"x": 0.0})[0].state == "met"
    assert verdicts.judge(claim(asked), {"x": 0.1})[0].state == "reversed"


# --- Holm


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_a_step_down_bonferroni(p_values):
    adjusted = verdicts.holm({str(n): p for n, p in enumerate(p_values)})
    order = np.argsort(p_values, kind="stable")
    rejected = set()
    for rank, index in enumerate(order):
        if p_values[index] * (len(p_values) - rank) >= verdicts.LEVEL:
            break
        rejected.add(str(index))
    assert {name for name, p in adjusted.items() if p < verdicts.LEVEL} == rejected


def nearly(name: str) -> Criterion:
    """A criterion that NEARLY meets alone, with p = 0.04, and not beside another like it."""
    return criterion(id=name, bound=1.33)


NEARLY = [0.55, 0.75, 0.95]


def test_a_measurement_that_suffices_alone_does_not_beside_another():
    alone = verdicts.judge(claim(nearly("a")), {"a": NEARLY})
    assert [o.state for o in alone] == ["met"]
    both = verdicts.judge(claim(nearly("a"), nearly("b")), {"a": NEARLY, "b": NEARLY})
    assert [o.state for o in both] == ["undecided"] * 2
    assert both[0].p == pytest.approx(2 * alone[0].p)


def test_what_is_not_measured_does_not_count_for_holm():
    beside = [criterion(id=k, kind=k) for k in ("proved", "computed")] + [criterion(id="one")]
    values = {"a": NEARLY, "proved": 0.0, "computed": [0.1, 0.2], "one": [0.5] * 3}
    outcomes = verdicts.judge(claim(nearly("a"), *beside), values)
    assert [o.state for o in outcomes] == ["met"] * 4


# --- values


@pytest.mark.parametrize(
    "value",
    [
        *(2, 2.0, np.float32(2), np.array(2), torch.tensor(2), torch.tensor(2.0, dtype=torch.half)),
        *([2.0], (2,), np.array([2.0]), torch.tensor([2.0]), iter([2])),
        torch.tensor(2.0, requires_grad=True),
    ],
)
def test_values_may_be_numbers_arrays_or_tensors(value):
    assert verdicts.judge(claim(criterion()), {"x": value})[0].values == (2.0,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "T1: x: a NaN: nothing was measured"),
        ([1.0, math.nan], "a NaN"),
        (torch.tensor(math.nan), "a NaN"),
        ([], "T1: x: no value; pass a number, or one for each seed"),
        (torch.empty(0), "no value"),
        ([1.0, math.inf, 2.0, math.inf], "2 of 4 values are infinite, so that the mean has no"),
    ],
)
def test_what_is_no_measurement_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        verdicts.judge(claim(criterion()), {"x": value})


@pytest.mark.parametrize("value", [0.0, [1.0, -1.0]])
def test_the_scale_log_needs_positive_values(value):
    with pytest.raises(ValueError, match="T1: x: the scale log needs values above 0, got"):
        verdicts.judge(claim(criterion(scale="log")), {"x": value})


@pytest.mark.parametrize("value", [torch.eye(2), [[1.0]], None, "one"])
def test_what_is_no_row_of_numbers_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        verdicts.judge(claim(criterion()), {"x": value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "T1: no values for a, b. Its criteria in claims.yml: a, b"),
        ({"a": 1, "b": 1, "c": 1}, "T1: no criterion named c. Its criteria in claims.yml: a, b"),
        ({"a": 1, "c": 1}, "T1: no values for b; no criterion named c"),
    ],
)
def test_values_and_criteria_go_together(values, message):
    with pytest.raises(TypeError, match=message):
        verdicts.judge(claim(criterion(id="a"), criterion(id="b")), values)


# --- as text


@pytest.mark.parametrize(
    ("asked", "values", "text"),
    [
        ({"relation": "≤", "bound": 2, "kind": "computed"}, 1.12345, "size: 1.123 ≤ 2"),
        ({"relation": "≥"}, [1.0, 2.0, 3.0], "size: 2.0 ± 2.5 ≥ 1 (3 of 3)"),
        ({"bound": 4.5}, [5.0, 5.0], "size: 5 < 4.5 (0 of 2)"),
        ({"relation": ">"}, [100.0, 200.0], "size: 150 ± 635 > 1 (2 of 2)"),
        ({"relation": ">"}, math.inf, "size: inf > 1"),
        ({"relation": ">"}, [math.inf] * 2, "size: inf > 1 (2 of 2)"),
        ({"relation": "≈", "tolerance": 0.05}, 1e-8, "size: 1e-08 ≈ 1 within 0.05"),
        ({"scale": "log"}, [0.97, 1.3, 1.66], "size: 1.28 [0.66, 2.50] < 1 (1 of 3)"),
        ({"kind": "computed"}, [0.25, 0.5], "size: 0.25 to 0.5 < 1 (2 of 2)"),
    ],
)
def test_an_outcome_as_text(asked, values, text):
    assert str(verdicts.judge(claim(criterion(**asked)), {"x": values})[0]) == text
