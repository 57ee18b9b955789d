"""The studies of many classes and of the open question: their rules, without long trainings."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from lipbook.lab.networks import mlp
from lipbook.wgan import gradient_penalty
from studies import classes, open_question


def test_tests_wait_for_their_tuning_and_take_the_best_setting():
    before = classes.cells()
    assert {cell["part"] for cell in before} == {"probe", "tuning"}
    cell = next(c for c in before if c["part"] == "tuning")
    scores = {(1.0, 5e-4): 0.2, (10.0, 5e-4): 0.9, (10.0, 2e-3): 0.5}
    table = pd.DataFrame(
        [
            {
                **cell,
                "step": step,
                "run": run,
                "strength used": s,
                "lr used": lr,
                "in class": value if step == cell["steps"] else 1 - value,
                "coverage": value,
            }
            for (s, lr), value in scores.items()
            for run in classes.TUNING_SEEDS
            for step in (500, cell["steps"])
        ]
    )
    tests = [c for c in classes.cells(table) if c["part"] == "test"]
    assert [(c["method"], c["strength"], c["lr"]) for c in tests] == [(cell["method"], 10.0, 5e-4)]


def test_every_method_has_as_many_settings():
    assert {len(grid) for grid in classes.GRIDS.values()} == {3}
    grids = {m: g for m, g in open_question.GRIDS.items() if m != "none"}
    assert {len(set(grid)) for grid in grids.values()} == {7}


def test_test_seeds_are_no_tuning_seeds():
    assert not set(classes.TEST_SEEDS) & {*classes.TUNING_SEEDS, classes.PROBE_SEED}


def test_the_critics_slopes_are_those_of_its_scores():
    settings = [classes.Setting(10, "SN", 2.0, 1e-3, 0), classes.Setting(10, "any", 2.0, 1e-3, 0)]
    pair = classes.Pair(settings, "cpu")
    p = pair.weights()
    points, labels = torch.randn(2, 3, classes.PIXELS), torch.tensor([[0, 1, 2]] * 2)
    step = 1e-2 * torch.randn(2, 3, classes.PIXELS)
    norms = classes.slopes(p, points, labels)
    rise = (classes.score(p, points + step, labels) - classes.score(p, points, labels)).abs()
    assert (rise <= 1.5 * norms * step.norm(dim=2)).all()
    assert not torch.allclose(norms[0], norms[1])  # one is normalized, one is not


@pytest.mark.parametrize("form", open_question.FORMS)
def test_the_term_at_the_data_is_that_of_the_core(form):
    method = f"loss, data, {form}"
    stack = open_question.Stack("mlp", 0.0, method, (1.0,), (0,), "cpu")
    x, y = (part[:, :20] for part in stack.parts[0])
    stack_term = term_of(stack, x, y)
    p = {name: part[0] for name, part in stack.parameters().items()}
    net = mlp([784, 128, 128, 10]).double()
    with torch.no_grad():
        for layer, k in ((0, 1), (2, 2), (4, 3)):
            net[layer].weight.copy_(p[f"W{k}"].T)
            net[layer].bias.copy_(p[f"b{k}"])
    images, labels = x[0], y[0]

    def loss(points):
        return torch.nn.functional.cross_entropy(net(points), labels, reduction="none")

    target, one_sided = (0.0 if form == "to 0" else 1.0), form == "at most 1"
    expected = gradient_penalty(loss, images, images, target=target, one_sided=one_sided)
    torch.testing.assert_close(stack_term, expected)


def term_of(stack, x, y):
    """Evaluate the term on a batch of another size than the training's."""
    batch, open_question.BATCH = open_question.BATCH, x.shape[1]
    try:
        return stack.term(stack.parameters(), x, y)[0]
    finally:
        open_question.BATCH = batch


def test_a_convolution_of_a_stack_is_torchs():
    h, weight, bias = torch.randn(2, 3, 8, 8, 4), torch.randn(2, 36, 5), torch.randn(2, 5)
    ours = open_question._convolved(h, weight, bias)
    for k in range(2):
        kernel = weight[k].T.reshape(5, 4, 3, 3)
        theirs = torch.nn.functional.conv2d(
            h[k].permute(0, 3, 1, 2), kernel, bias[k], stride=2, padding=1
        ).relu()
        torch.testing.assert_close(ours[k].permute(0, 3, 1, 2), theirs, rtol=1e-4, atol=1e-4)


def test_the_best_on_validation_is_selected_and_gains_are_paired():
    def row(method, run, strength, validation, test):
        return {"part": "test", "model": "mlp", "noise": 0.4, "method": method, "run": run,
                "strength": strength, "validation": validation, "test": test}  # fmt: skip

    table = pd.DataFrame(
        [row("none", run, 0.0, 0.5, 0.5) for run in (0, 1)]
        + [row("l2", 0, 1.0, 0.6, 0.9), row("l2", 0, 2.0, 0.6, 0.7), row("l2", 1, 1.0, 0.6, 0.4)]
    )
    assert open_question.gains(table, "mlp", 0.4, "l2").round(9).tolist() == [0.2, -0.1]
    both = open_question.gains(table, "mlp", 0.4, "none", over=("l2", "none"))
    assert both.round(9).tolist() == [-0.2, 0.1]
