"""Letters of many classes, and stacks of small networks."""

from __future__ import annotations

import pytest
import torch

from lipbook.lab import stacked
from lipbook.lab.glyphs import MOST_CLASSES, SIZE, glyphs, letters


def test_ten_classes_are_the_first_ten_of_three_hundred():
    few, many = (glyphs(n, 1, seed=3) for n in (10, MOST_CLASSES))
    assert many.inputs.shape == (MOST_CLASSES, 1, SIZE, SIZE)
    assert torch.equal(many.labels[:10], few.labels)
    assert len(set(letters()[:MOST_CLASSES])) == MOST_CLASSES


def test_images_are_drawn_again_alike_and_otherwise_with_another_seed():
    first, again, other = (glyphs(4, 12, seed=seed).inputs for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().amax((1, 2, 3)).min() > 0.1


def test_no_image_is_empty_or_touches_its_edge():
    images = glyphs(100, 12).inputs[:, 0]
    assert images.amin() >= 0
    assert images.amax((1, 2)).min() > 0.5
    border = torch.cat([images[:, [0, -1]].flatten(1), images[:, :, [0, -1]].flatten(1)], dim=1)
    assert (border.amax(1) > 0.5).double().mean() < 0.02


def test_classes_are_told_apart_by_their_nearest_mean():
    images = glyphs(10, 24).inputs
    means = images.flatten(1).unflatten(0, (10, 24)).mean(1)
    new, truth = glyphs(10, 12, seed=1)
    found = torch.cdist(new.flatten(1), means).argmin(1)
    assert (found == truth).double().mean() > 0.6


@pytest.mark.parametrize("n", [0, MOST_CLASSES + 1])
def test_so_many_classes_are_refused(n):
    with pytest.raises(ValueError, match="n_classes"):
        glyphs(n)


def test_a_stack_trains_each_network_as_if_it_were_alone():
    shapes = {"W": (3, 2), "b": (2,)}
    x, y = torch.randn(2, 8, 3), torch.randn(2, 8, 2)

    def trained(some: slice) -> torch.Tensor:
        rows = stacked.initial(shapes, [1, 2])[some].requires_grad_()
        adam = stacked.Adam(rows, torch.tensor([0.1, 0.01])[some])
        for _ in range(5):
            p = stacked.parameters(rows, shapes)
            loss = (stacked.affine(x[some], p["W"], p["b"]) - y[some]).square().mean((1, 2))
            adam.step(torch.autograd.grad(loss.sum(), rows)[0])
        return rows.detach()

    alone = torch.cat([trained(slice(0, 1)), trained(slice(1, 2))])
    torch.testing.assert_close(trained(slice(2)), alone)


def test_adam_of_a_stack_is_torchs():
    rows = torch.randn(1, 6)
    reference = torch.nn.Parameter(rows.clone())
    theirs = torch.optim.Adam([reference], lr=0.05, betas=(0.5, 0.9))
    ours = stacked.Adam(rows, torch.tensor([0.05]), betas=(0.5, 0.9))
    for _ in range(4):
        gradient = torch.randn(1, 6)
        reference.grad = gradient
        theirs.step()
        ours.step(gradient)
    torch.testing.assert_close(rows, reference.detach())


def test_spectral_steps_find_the_norm_and_its_gradient():
    weight = torch.randn(3, 7, 4, dtype=torch.float64).requires_grad_()
    u = torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    for _ in range(300):
        norms, u = stacked.spectral_step(weight, u)
    truth = torch.linalg.matrix_norm(weight, 2)
    torch.testing.assert_close(norms, truth)
    grads = [torch.autograd.grad(n.sum(), weight, retain_graph=True)[0] for n in (norms, truth)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)
