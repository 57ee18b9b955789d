"""The small nets and their trainer: shapes, determinism, modes, refusals."""

import copy

import pandas as pd
import pytest
import torch
from torch import nn

from lipbook._checks import check_labelled
from lipbook._layers import evaluation_mode
from lipbook.lab.classification import accuracy, digits_reader, digits_readers, train_classifier
from lipbook.lab.networks import digits_cnn, mlp, vgg
from lipbook.lab.stacked import SideBySide
from lipbook.wgan import critic_loss, gradient_penalty

BLOBS = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).repeat(20, 1)
BLOBS = BLOBS + 0.2 * torch.randn(BLOBS.shape, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1]).repeat(20)


def test_mlp_alternates_dense_layers_and_activations():
    net = mlp([3, 5, 4, 2], nn.Tanh, bias=False)
    assert [type(layer).__name__ for layer in net] == ["Linear", "Tanh"] * 2 + ["Linear"]
    assert [layer.weight.shape for layer in net[::2]] == [(5, 3), (4, 5), (2, 4)]
    assert all(layer.bias is None for layer in net[::2])


@pytest.mark.parametrize("build", [lambda: mlp([4, 8, 2]), digits_cnn])
def test_weights_depend_on_the_global_seed_alone(build):
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build().parameters())

    assert torch.equal(weights(7), weights(7))
    assert not torch.equal(weights(7), weights(8))


@pytest.mark.parametrize("sizes", [[], [3]])
def test_mlp_refuses_too_few_sizes(sizes):
    with pytest.raises(ValueError, match="an input and an output width"):
        mlp(sizes)


@pytest.mark.parametrize(("sizes", "error"), [([2, 0, 1], ValueError), ([2, 1.5], TypeError)])
def test_mlp_refuses_widths_that_are_no_counts(sizes, error):
    with pytest.raises(error, match="sizes must be"):
        mlp(sizes)


def test_critics_side_by_side_learn_what_each_learns_alone():
    """With a penalty, and so with second derivatives; by Adam, which does not ask for the scale."""
    torch.manual_seed(0)
    alone = [mlp([1, 8, 1], nn.Tanh).double() for _ in range(3)]
    together = SideBySide(alone)
    real, fake = torch.tensor([[2.0], [1.0]]).double(), torch.zeros(2, 1).double()

    def trained(critic, copies):
        optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
        pair = real.repeat(copies, 1), fake.repeat(copies, 1)
        for _ in range(60):
            optimizer.zero_grad()
            penalty = gradient_penalty(critic, *pair, epsilon=0.5)
            (critic_loss(critic(pair[0]), critic(pair[1])) + 10 * penalty).backward()
            optimizer.step()
        return critic

    x = torch.linspace(-3, 3, 7).double()[:, None]
    expected = torch.cat([trained(critic, 1)(x) for critic in alone])
    found = trained(together, 3)(x.repeat(3, 1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_readers_side_by_side_learn_what_each_learns_alone():
    """Split, first weights and order of the batches too; few steps, which magnify no rounding."""
    seeds = [3, 0, 11]
    together = digits_readers(seeds, epochs=2)
    alone = [digits_reader(seed, epochs=2) for seed in seeds]
    for (network, splits), (expected, own) in zip(together, alone, strict=True):
        assert not network.training
        torch.testing.assert_close(splits.test.inputs, own.test.inputs, rtol=0, atol=0)
        torch.testing.assert_close(
            network.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-4
        )


def test_readers_are_trained_whatever_the_mode_of_the_caller():
    with torch.inference_mode():
        ((network, splits),) = digits_readers([1], epochs=5)
    assert accuracy(network, *splits.train) > 0.8
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        digits_readers([1], epochs=0)


def test_only_dense_layers_stand_side_by_side():
    with pytest.raises(TypeError, match=r"nn\.Linear with a bias may have weights, not Conv2d"):
        SideBySide([digits_cnn(), digits_cnn()])
    with pytest.raises(TypeError, match="bias=False"):
        SideBySide([mlp([2, 1], bias=False)])


def test_digits_cnn_takes_flat_images():
    net = digits_cnn((2, 3), nn.Tanh)
    assert net(torch.zeros(4, 64)).shape == (4, 10)
    assert sum(isinstance(layer, nn.Tanh) for layer in net) == 2
    with pytest.raises(ValueError, match="channels must be at least 1"):
        digits_cnn((4, 0))


def test_vgg_halves_the_image_in_each_block():
    net = vgg((1, 12, 9), 3, widths=(2, 4))
    assert [type(layer).__name__ for layer in net[:5]] == ["Conv2d", "ReLU"] * 2 + ["MaxPool2d"]
    assert net[:-2](torch.zeros(1, 1, 12, 9)).shape == (1, 4, 3, 2)
    assert net(torch.zeros(5, 1, 12, 9)).shape == (5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3, 8, 7), 2), r"at least 8×8 for 3 blocks, got \(3, 8, 7\)"),
        (((0, 8, 8), 2), "input_shape must be at least 1"),
        (((3, 8, 8), 0), "n_classes must be at least 1"),
    ],
)
def test_vgg_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        vgg(*arguments)


def test_evaluation_mode_restores_each_module_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == [True, True, False, True]
    with evaluation_mode(torch.relu):  # a plain function has no mode
        pass


def test_training_learns_and_reports():
    torch.manual_seed(0)
    model = nn.Sequential(mlp([2, 8, 2]), nn.Dropout(0.1))
    history = train_classifier(model, BLOBS, CLASSES, epochs=30, lr=0.02, batch_size=7)
    assert isinstance(history, pd.DataFrame)
    assert history["epoch"].tolist() == list(range(1, 31))
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] / 2
    assert accuracy(model, BLOBS, CLASSES) == 1.0
    assert not model.training


def test_history_is_the_mean_over_examples_not_batches():
    model = mlp([2, 2])
    with torch.no_grad():
        right = (model(BLOBS).argmax(1) == CLASSES).double().mean().item()
        loss = nn.functional.cross_entropy(model(BLOBS), CLASSES).item()
    # Steps too small to matter: every batch sees the same model. 40 = 5 · 7 + 5.
    history = train_classifier(model, BLOBS, CLASSES, epochs=1, lr=1e-12, batch_size=7)
    assert history["accuracy"].item() == pytest.approx(right)
    assert history["loss"].item() == pytest.approx(loss, rel=1e-5)


def test_training_is_deterministic_and_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    models = [mlp([2, 8, 2])]
    models += [copy.deepcopy(models[0]) for _ in range(2)]
    generators = [None, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)]
    state = torch.get_rng_state()
    histories = [
        train_classifier(model, BLOBS, CLASSES, epochs=3, batch_size=8, generator=generator)
        for model, generator in zip(models, generators, strict=True)
    ]
    assert torch.equal(state, torch.get_rng_state())
    pd.testing.assert_frame_equal(histories[0], histories[1])
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert not torch.equal(models[0][0].weight, models[2][0].weight)


def test_the_history_keeps_loss_and_penalty_apart():
    model = mlp([2, 2])
    without = train_classifier(copy.deepcopy(model), BLOBS, CLASSES, epochs=2)
    history = train_classifier(
        model, BLOBS, CLASSES, epochs=2, batch_size=64, penalty=lambda *_: BLOBS.max()
    )
    assert history.columns.tolist() == ["epoch", "loss", "penalty", "accuracy"]
    assert history["penalty"].tolist() == pytest.approx([BLOBS.max().item()] * 2)
    assert without["penalty"].tolist() == [0, 0]
    assert history["loss"].tolist() == without["loss"].tolist()  # a constant changes no gradient


def test_a_penalty_is_minimized_with_the_loss_and_sees_the_batch():
    model, sizes = mlp([2, 2]), []

    def penalty(inputs, labels):
        assert torch.equal(labels, (inputs[:, 0] > 0).long())
        sizes.append(len(inputs))
        return 100 * model[0].weight.square().sum()

    train_classifier(model, BLOBS, CLASSES, epochs=100, lr=0.01, batch_size=30, penalty=penalty)
    assert sizes[:4] == [30, 10, 30, 10]
    assert model[0].weight.abs().max() < 0.05


def test_another_criterion_is_minimized():
    def confidence(criterion) -> float:
        torch.manual_seed(0)
        model = mlp([2, 2])
        train_classifier(model, BLOBS, CLASSES, epochs=300, lr=0.1, criterion=criterion)
        return torch.softmax(model(BLOBS), 1).amax(1).mean().item()

    smooth = nn.CrossEntropyLoss(label_smoothing=0.4)  # its best answer is 0.8 and 0.2
    assert confidence(smooth) < 0.9 < confidence(nn.functional.cross_entropy)


def test_another_optimizer_and_its_schedule_advance_at_every_step():
    model = mlp([2, 2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    train_classifier(
        model, BLOBS, CLASSES, epochs=3, batch_size=20, optimizer=optimizer, schedule=schedule
    )
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 4)  # 6 steps, halved at 3 and 6


def test_the_optimizer_that_is_given_makes_the_step():
    model = mlp([2, 2])
    before = copy.deepcopy(model)
    nn.functional.cross_entropy(before(BLOBS), CLASSES).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_classifier(model, BLOBS, CLASSES, epochs=1, optimizer=optimizer)
    expected = before[0].weight - 0.1 * before[0].weight.grad
    torch.testing.assert_close(model[0].weight, expected)


def test_a_schedule_of_another_optimizer_is_refused():
    model = mlp([2, 2])
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    schedule = torch.optim.lr_scheduler.ConstantLR(second)
    for optimizer in (first, None):
        with pytest.raises(ValueError, match="schedule must be one of the optimizer"):
            train_classifier(
                model, BLOBS, CLASSES, epochs=1, optimizer=optimizer, schedule=schedule
            )


@pytest.mark.parametrize("progress", [False, True])
def test_progress_is_shown_when_asked_for(progress, capsys):
    train_classifier(mlp([2, 2]), BLOBS, CLASSES, epochs=1, progress=progress)
    assert ("epochs" in capsys.readouterr().err) is progress


def test_accuracy_is_that_of_evaluation_mode_and_restores_the_mode():
    model = nn.Sequential(nn.Dropout(0.9), nn.Identity())
    assert accuracy(model, torch.eye(64), torch.arange(64)) == 1.0
    assert model.training


def test_a_penalty_that_is_not_finite_is_an_error():
    with pytest.raises(FloatingPointError, match=r"the penalty inf; .*weaken the penalty"):
        train_classifier(
            mlp([2, 2]), BLOBS, CLASSES, epochs=1, penalty=lambda x, _: x.sum() * torch.inf
        )


def test_divergence_is_an_error_that_names_the_way_out():
    with pytest.raises(FloatingPointError, match=r"diverged in epoch .*lower lr=1e\+30"):
        train_classifier(mlp([2, 4, 2], nn.Identity), BLOBS, CLASSES, epochs=2, lr=1e30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_train_and_count(dtype):
    model = mlp([2, 2]).to(dtype)
    train_classifier(model, BLOBS.to(dtype), CLASSES, epochs=20, lr=0.05)
    assert accuracy(model, BLOBS.to(dtype), CLASSES) == 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"lr": -1.0}, ValueError, "lr must be"),
        ({"lr": "fast"}, TypeError, "lr must be"),
        ({"inputs": CLASSES}, TypeError, "inputs must have a real floating-point dtype"),
        ({"inputs": BLOBS / 0}, ValueError, "inputs must be finite"),
        ({"labels": CLASSES[:3]}, ValueError, r"labels must have shape \(40,\)"),
        ({"labels": CLASSES.int()}, TypeError, "int64 tensor, got torch.int32"),
        ({"labels": CLASSES.tolist()}, TypeError, "int64 tensor, got list"),
    ],
)
def test_train_classifier_refuses(arguments, error, message):
    arguments = {"inputs": BLOBS, "labels": CLASSES, "epochs": 1} | arguments
    with pytest.raises(error, match=message):
        train_classifier(mlp([2, 2]), **arguments)


def test_accuracy_checks_its_labels():
    with pytest.raises(ValueError, match="labels must have shape"):
        accuracy(mlp([2, 2]), BLOBS, CLASSES[:-1])
    check_labelled(BLOBS, CLASSES)
