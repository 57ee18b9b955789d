"""The studies of image generators: what they choose, compare and run, at tiny settings."""

import base64
import gzip
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import studies
from lipbook.lab.dcgan import dcgan_critic
from lipbook.lab.fidelity import AttributeClassifier, Yardstick
from lipbook.power_iteration import spectral_norm
from studies import (
    _pool,
    facial_features,
    facial_ladder,
    loss_or_steps,
    panels,
    rivals,
    rivals_on_digits,
    rivals_on_faces,
    small_panels,
    yardstick,
)
from studies._pictures import norm_by_squaring, project_exactly
from workflow import study as measuring
from workflow.project import CATALOGUE
from workflow.study import gather_rows

BLOCK = {"data": "mnist", "loss": "wasserstein", "critic_steps": 5}


def tuning_rows(worst=()):
    """Last distances that grow with the strength's place; some runs break down."""
    plan = [cell for cell in rivals.cells() if {k: cell[k] for k in BLOCK} == BLOCK]
    rows = []
    for cell in plan:
        place = rivals.STRENGTHS[cell["method"]].index(cell["strength"])
        good = (cell["critic_lr"], cell["generator_lr"]) == (6e-4, 6e-4)
        broken = (cell["method"], place) in worst and cell["seed"] == 101
        step = 30 if broken else cell["steps"]
        rows.append({**cell, "step": step, "log distance": place - 5.0 * good})
    return plan, pd.DataFrame(rows)


def test_each_method_takes_its_best_setting_on_the_tuning_seeds():
    plan, rows = tuning_rows()
    chosen = rivals.best(rows, BLOCK, plan)
    assert list(chosen) == list(rivals.METHODS)
    for method, setting in chosen.items():
        assert list(setting.values()) == [rivals.STRENGTHS[method][0], 6e-4, 6e-4]


def test_a_run_that_broke_down_is_far_off():
    plan, rows = tuning_rows(worst={("SN", 0)})
    chosen = rivals.best(rows, BLOCK, plan)
    assert chosen["SN"]["strength"] == rivals.STRENGTHS["SN"][1]
    assert chosen["R1"]["strength"] == rivals.STRENGTHS["R1"][0]


def test_tests_wait_for_all_of_the_tuning():
    _, rows = tuning_rows()
    assert not any(cell["part"] == "test" for cell in rivals.cells(rows.iloc[1:]))
    tests = [cell for cell in rivals.cells(rows) if cell["part"] == "test"]
    assert len(tests) == len(rivals.METHODS) * len(rivals.TEST_SEEDS["mnist"])
    assert {cell["seed"] for cell in tests}.isdisjoint(rivals.TUNING_SEEDS)
    assert len({json.dumps(cell) for cell in rivals.cells(rows)}) == len(rivals.cells(rows))


def test_every_method_has_the_same_effort():
    tried = pd.DataFrame(rivals.cells()).groupby([*rivals.BLOCK, "method"]).size()
    assert tried.nunique() == 1


def ended(plan, off):
    """Rows of runs that ended, with distances that a function of the cell decides."""
    return pd.DataFrame([{**c, "step": c["steps"], "log distance": off(c)} for c in plan])


@pytest.fixture(
    params=[rivals_on_faces, rivals_on_digits, loss_or_steps], ids=["faces", "digits", "corner"]
)
def searched(request):
    """Each of the studies with a search in rounds."""
    return request.param


def whole_plan(study, off):
    """The runs of a study where distances are what a function of the cell says."""
    plan = study.cells()
    while len(more := study.cells(ended(plan, off))) > len(plan):
        plan = more
    return pd.DataFrame(plan)


def test_a_search_goes_on_with_each_methods_best_settings(searched):
    """Three go on of fifteen, and one of three; where a seed broke down, a setting is far off."""

    def off(cell):
        broke = cell["part"] == "tuning" and cell["seed"] == 101 and cell["generator_lr"] == 6e-4
        return np.inf if broke else abs(np.log(cell["generator_lr"] / 6e-4)) + cell["strength"]

    table = whole_plan(searched, off)
    effort = table.groupby(["loss", "part", "method"]).size().unstack()
    assert (effort.nunique(axis=1) == 1).all()
    n_tests = len(searched.SEARCH.test_seeds)
    assert effort.loc[searched.BLOCKS[0][0], "SN"].tolist() == [60, n_tests, 12, 16]
    for method, strengths in rivals.STRENGTHS.items():
        own = table[table["method"] == method].drop_duplicates(["part", *rivals.SETTING])
        rates = own[own["strength"] <= strengths[0]].groupby("part")["generator_lr"].agg(set)
        assert 6e-4 in rates["tuning"]
        assert 6e-4 not in rates["test"]
    seeds = table.groupby("part")["seed"].agg(set)
    assert seeds["test"].isdisjoint(seeds["probe"] | seeds["tuning"] | seeds["wider"])


def test_a_search_goes_beyond_the_edges_that_it_meets_and_no_other(searched):
    table = whole_plan(searched, lambda c: -c["strength"] + abs(np.log(c["critic_lr"] / 6e-4)))
    tested = table[table["part"] == "test"].groupby("method")[rivals.SETTING].agg(set)
    wider = table[table["part"] == "wider"].groupby("method")[rivals.SETTING].agg(set)
    assert tested.loc["SN", "strength"] == {8.0}
    assert (wider["critic_lr"] == {6e-4}).all()
    assert wider.loc["two-sided", "strength"] == {100.0}

    def inside(cell):
        middle = {"SN": 2.0}.get(cell["method"], 1.0)
        return abs(np.log(cell["strength"] / middle)) + abs(np.log(cell["critic_lr"] / 6e-4))

    assert set(whole_plan(searched, inside)["part"]) == {"probe", "tuning", "test"}


def test_a_search_waits_for_its_slowest_run(searched):
    def parts(found):
        first = ("SN", searched.BLOCKS[0][0])
        return {c["part"] for c in searched.cells(found) if (c["method"], c["loss"]) == first}

    rows = ended(searched.cells(), lambda cell: cell["strength"])
    assert parts(rows.iloc[1:]) == {"probe"}
    assert parts(rows) == {"probe", "tuning"}


def curves(method, exponent, end):
    """Distances that fall as a power of the step, down to an end."""
    steps = np.array([1, 10, 100, 1000])
    logs = np.log(np.maximum(100.0 * steps**-exponent, end))
    common = {**BLOCK, "part": "test", "method": method, "steps": 1000}
    return [
        {**common, "seed": seed, "step": step, "log distance": value}
        for seed in range(3)
        for step, value in zip(steps, logs, strict=True)
    ]


def test_quotients_are_below_one_where_normalization_needs_fewer_steps():
    table = pd.DataFrame(curves("SN", 1.0, 1.0) + curves("two-sided", 0.5, 1.0))
    # The level is 1.25 times 100/√1000; 100 s⁻¹ and 100 s^(−1/2) come to it at s and s².
    level = 1.25 * 100 / 1000**0.5
    expected = np.log(100 / level) - 2 * np.log(100 / level)
    steps, last = rivals.over(table, BLOCK, "two-sided")
    np.testing.assert_allclose(np.log(steps), expected, atol=1e-9)
    assert (np.log(rivals.over(table, BLOCK, "two-sided", level=2.0).steps) > expected).all()
    np.testing.assert_allclose(last, 1000**0.5 / 100)


def test_the_panels_take_the_step_size_that_ends_nearest():
    variant = panels.MAIN[0]
    rows = pd.DataFrame(
        [
            {**cell, "step": cell["steps"], "log distance": abs(np.log(cell["lr"] / 7e-4))}
            for cell in panels.cells()
            if cell["part"] == "tuning" and (cell["division"], cell["norm"]) == variant
        ]
    )
    assert panels.best(rows, variant, len(rows), 1000) == 7e-4
    assert panels.best(rows.iloc[1:], variant, len(rows), 1000) is None
    best = [cell for cell in panels.cells(rows) if cell["part"] == "best"]
    assert [cell["lr"] for cell in best] == [7e-4] * 5


def test_the_small_panels_go_on_with_the_best_step_size_of_each_variant():
    """The first is best at the article's, and needs no "equal"; of the second a run broke down."""
    tuning = [cell for cell in small_panels.cells() if cell["part"] == "tuning"]
    assert len(tuning) == 4 * 4 * 2

    def off(cell):
        variant = cell["division"], cell["norm"]
        target = small_panels.LR if variant == panels.TUNED[0] else 2e-3
        broke = variant == panels.TUNED[1] and cell["lr"] == 2e-3 and cell["seed"] == 101
        return np.inf if broke else abs(np.log(cell["lr"] / target))

    rows = pd.DataFrame(
        [{**cell, "step": cell["steps"], "log distance": off(cell)} for cell in tuning]
    )
    plan = pd.DataFrame(small_panels.cells(rows))
    chosen = plan[plan.part == "best"].groupby(["division", "norm"], sort=False).lr.unique()
    assert chosen[panels.TUNED[0]] == [small_panels.LR]
    assert chosen[panels.TUNED[1]] == [7e-4]
    assert chosen[panels.TUNED[2]] == [2e-3]
    assert len(plan[plan.part == "best"]) == 4 * 5
    assert len(plan[plan.part == "equal"]) == 3 * 5
    first_missing = pd.DataFrame(small_panels.cells(rows[rows.lr != 2e-4]))
    assert "best" not in set(first_missing.part)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (1, 5), (40, 40)])
def test_the_norm_by_squaring(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(norm_by_squaring(matrix), spectral_norm(matrix), rtol=2e-4, atol=0)


def test_an_exact_projection_leaves_norms_of_one():
    torch.manual_seed(0)
    critic = dcgan_critic((1, 8, 8), width=4, depth=2, batch_norm=True)
    project_exactly(critic)
    for layer in critic:
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert layer.weight.abs().max().item() == pytest.approx(1, abs=1e-3)
        elif hasattr(layer, "weight"):
            norm = spectral_norm(layer.weight.detach().flatten(1))
            assert norm.item() == pytest.approx(1, rel=2e-4)


def test_a_pool_goes_on_after_a_kill(tmp_path):
    """What is written half, and cells that did not end, count for nothing."""
    cell = {**rivals.cells(tiny=True)[0], "part": "test"}
    row = {"row": {"step": 1, "log distance": 0.0}}
    entries = [{"begin": True}, row, {"seconds": 1.0}]
    other = {**cell, "seed": 5}
    ended = (cell, {**cell, "seed": 6})
    lines = [json.dumps({"cell": c, **e}) for c in ended for e in entries]
    lines += [json.dumps({"cell": other, **e}) for e in entries[:2]] + ['{"cell": {"pa']
    (tmp_path / "rivals.jsonl").write_text("\n".join(lines), encoding="utf-8")
    book = _pool.Book("rivals", tmp_path, tiny=True)
    assert book.begun == {_pool.key(c) for c in ended}
    assert book.next() != cell
    again = list(_pool.read(tmp_path / "rivals.jsonl"))
    assert "begin" in again[-1]
    (tmp_path / "rivals.json").write_text('{"measured": "2020", "criteria": {}, "code": {}}')
    assert gather_rows("rivals", tmp_path, tmp_path / "out.csv", commit="0f")
    assert len(pd.read_csv(tmp_path / "out.csv")) == 2
    assert json.loads((tmp_path / "out.json").read_text())["commit"] == "0f"


def test_a_pool_is_gathered_under_the_catalogue_of_the_day_it_began(tmp_path, monkeypatch):
    """A criterion may have moved or changed since; what was not in git then counts for nothing."""
    then = CATALOGUE.read_text(encoding="utf-8").replace(
        "{id: steps_mnist, role", "{id: of_then, role"
    )
    (tmp_path / "claims.yml").write_text(then, encoding="utf-8")
    read = _pool.criteria(rivals.CLAIMS, tmp_path / "claims.yml")
    answers = {"log": "0f", "show": then}
    monkeypatch.setattr(measuring, "_git", lambda command, *_: answers[command])

    def stated(criteria):
        facts = {"measured": "2026-11-29", "criteria": criteria}
        return measuring._stated_then("rivals", facts)

    assert stated(read)["commit"] == "0f"
    assert "of_then" in stated(read)["digests"]["SP5"]
    assert "steps_mnist" not in stated(read)["digests"]["SP5"]
    assert "of_then" not in stated({**read, "SP5.of_then": "another"})["digests"]["SP5"]
    answers["log"] = ""  # older than the catalogue
    assert stated(read) == {}


def test_a_pool_does_not_begin_under_a_catalogue_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "folder", lambda: tmp_path / "studies")
    bad = CATALOGUE.read_text(encoding="utf-8").replace("study: rivals,", "study: revels,")
    (tmp_path / "claims.yml").write_text(bad, encoding="utf-8")
    with pytest.raises(ValueError, match="SP5: 'revels' is none of its studies"):
        _pool.run(["rivals"], tmp_path / "pool", workers=1)
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(
    ("parts", "ended"), [(("tuning", "tuning"), 2), (("test", "test", "test"), 1)]
)
def test_no_table_is_made_of_tuning_alone_nor_of_what_was_cut_off(tmp_path, parts, ended):
    cells = [{**rivals.cells()[k], "part": part} for k, part in enumerate(parts)]
    entries = [{"cell": cell, "begin": True} for cell in cells]
    entries += [{"cell": cell, "row": {"step": 1}} for cell in cells]
    entries += [{"cell": cell, "seconds": 1.0} for cell in cells[:ended]]
    (tmp_path / "rivals.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    assert not gather_rows("rivals", tmp_path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_table_of_what_was_cut_off_is_asked_for_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "PARTIAL", True, raising=False)
    cells = [{**rivals.cells()[k], "part": "test"} for k in range(3)]
    entries = [{"cell": cell, "row": {"step": 1}} for cell in cells]
    entries.append({"cell": cells[0], "seconds": 1.0})
    (tmp_path / "rivals.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    (tmp_path / "rivals.json").write_text('{"measured": "2020", "criteria": {}, "code": {}}')
    assert gather_rows("rivals", tmp_path, tmp_path / "out.csv", cut_off=True)
    assert len(pd.read_csv(tmp_path / "out.csv")) == 3
    assert json.loads((tmp_path / "out.json").read_text())["cells that did not end"] == 2


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_pictures_are_kept_as_text_and_read_as_bytes(tmp_path, monkeypatch, ending):
    """The first six of each of the first two rows, of the cells and steps that a study names."""
    grid = np.arange(32 * 16, dtype=np.uint8).reshape(16, 32) % 251  # tiles of four pixels
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    cell = {"part": "test", "seed": 0}
    entries = [
        {"cell": {**cell, "seed": seed}, "step": step, "png": png}
        for seed in (0, 1)
        for step in (1, 9)
    ]
    opened = gzip.open if ending.endswith(".gz") else open
    with opened(tmp_path / f"rivals-grids{ending}", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
    rows = [{"cell": cell, "row": {"step": 9}}, {"cell": cell, "seconds": 1.0}]
    (tmp_path / "rivals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rivals.json").write_text('{"measured": "2020", "criteria": {}, "code": {}}')
    for wanted in [({"seed": 0}, 9), ({"seed": 7}, 9)]:  # nothing new: what was kept stays
        monkeypatch.setattr(rivals, "PICTURES", (wanted,))
        assert gather_rows("rivals", tmp_path, tmp_path / "out.csv")
    monkeypatch.setattr(studies, "folder", lambda: tmp_path)
    (row,) = studies.pictures("rivals").to_dict("records")
    assert (row["seed"], row["step"]) == (0, 9)
    np.testing.assert_array_equal(row["image"], grid[:8, :24])


def test_a_cell_that_fails_twice_ends_without_a_result(tmp_path):
    book = _pool.Book("rivals", tmp_path, tiny=True)
    cell = book.next()
    book.fail(cell, "no memory")
    assert _pool.key(cell) not in book.begun
    book.begun.add(_pool.key(cell))
    book.fail(cell, "no memory")
    assert [row["step"] for row in book.done] == [0]


@pytest.mark.parametrize("kind", yardstick.KINDS)
@pytest.mark.parametrize("ladder", list(yardstick.LADDERS))
def test_the_yardstick_ranks_what_is_known_to_be_worse(kind, ladder):
    table = studies.load("yardstick")
    rungs = table[(table["kind"] == kind) & (table["ladder"] == ladder)].sort_values("level")
    assert (rungs["distance"].diff().dropna() > 0).all()
    fallen = "coverage" if ladder == "fewer kinds" else "confident"
    assert rungs[fallen].iloc[-1] < 0.9 * rungs[fallen].iloc[0]


def test_a_yardstick_calls_images_that_are_not_finite_infinitely_far():
    torch.manual_seed(0)
    real = torch.rand(20, 1, 28, 28)
    judged = Yardstick(AttributeClassifier((1, 28, 28), [10]), real).judge(real / 0)
    assert judged == {"distance": float("inf"), "confident": 0.0, "coverage": 0.0}


@pytest.mark.parametrize(("ladder", "rungs"), facial_ladder.LADDERS.items())
def test_the_filter_ranks_what_is_known_to_have_less_of_a_face(ladder, rungs):
    table = studies.load("facial_ladder")
    seen = table[table["ladder"] == ladder].set_index("level").loc[list(rungs), "features"]
    assert seen.iloc[0] == pytest.approx(1, abs=0.05)
    assert (seen.iloc[1:] < seen.iloc[0] - 0.2).all()
    if ladder != "out of place":  # where what is a little off may be as bad as what is far off
        assert (seen.diff().dropna() < 0).all()


def test_both_divisions_meet_the_same_seeds_at_either_step_size():
    plan = pd.DataFrame(facial_features.cells())
    kinds = plan.groupby(["division", "lr"])["seed"].agg(list)
    assert len(kinds) == 4
    assert all(seeds == list(facial_features.SEEDS) for seeds in kinds)
    known = {*small_panels.SEEDS, *small_panels.TUNING_SEEDS}
    assert known.isdisjoint(facial_features.SEEDS)
    small = studies.load("small_panels").query("part == 'best' and norm == 'none'")
    chosen = small.groupby("division")["lr"].unique()
    for where, lr in facial_features.BEST.items():
        assert list(chosen[f"{where}, article"]) == [lr]


def test_ends_are_those_of_one_division_at_one_step_size():
    rows = [
        {"division": division, "lr": lr, "step": step, "seed": 3, "features": step + 1000 * lr}
        for division, best in facial_features.BEST.items()
        for lr in (facial_features.EQUAL, best)
        for step in (1000, 1500)
    ]
    table = pd.DataFrame(rows)
    assert facial_features.ends(table, "inside", best=True).to_dict() == {3: 1500.7}
    assert facial_features.ends(table, "after", best=False).to_dict() == {3: 1500.2}
