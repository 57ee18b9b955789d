"""Classifiers: their training, and how often they are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from lipbook._checks import check_count, check_labelled, check_positive
from lipbook._layers import evaluation_mode
from lipbook.lab.data import LabelledData, Splits, digits, split
from lipbook.lab.networks import mlp
from lipbook.lab.stacked import SideBySide
from lipbook.lipschitz import l2_attack


@torch.inference_mode(False)
@torch.enable_grad()
def train_classifier(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 64,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    penalty: Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Minimize a loss plus a penalty, (11) or (16), in place; end in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        From inputs to logits of shape (n, n_classes).
    inputs : Tensor, shape (n, ...)
        On the device and of the dtype of the model.
    labels : Tensor, shape (n,)
        int64 classes from 0.
    epochs : int
        Passes over the data.
    lr : float, default 1e-3
        Step size of Adam, the optimizer if no other is given.
    batch_size : int, default 64
        Examples per step; the last batch of an epoch may be smaller.
    criterion : callable, default torch.nn.functional.cross_entropy
        From the logits and labels of a batch to its mean loss.
    penalty : callable, optional
        From the inputs and labels of a batch to a number that is added to its loss, such as
        ``lambda x, y: 1e-3 * frobenius_penalty(model)``.
    optimizer : torch.optim.Optimizer, optional
        Over the parameters of the model.
    schedule : torch.optim.lr_scheduler.LRScheduler, optional
        Of that optimizer; it advances at every step, not at every epoch.
    generator : torch.Generator, optional
        On the CPU; shuffles the examples. By default a fresh one of seed 0, so that training is
        deterministic and leaves the global generator alone (unless the model has Dropout).
    progress : bool, default False
        Show a bar over the epochs.

    Returns
    -------
    pandas.DataFrame
        One row an epoch: `epoch` from 1, and the running means of `loss`, `penalty` (0 without
        one) and `accuracy` over the batches as they were trained on.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    FloatingPointError
        If the loss or the penalty ceases to be finite.

    Examples
    --------
    >>> inputs = torch.tensor([[-1.0], [1.0]])
    >>> model = nn.Linear(1, 2)
    >>> history = train_classifier(model, inputs, torch.tensor([0, 1]), epochs=200, lr=0.1)
    >>> history.columns.tolist(), accuracy(model, inputs, torch.tensor([0, 1]))
    (['epoch', 'loss', 'penalty', 'accuracy'], 1.0)
    >>> train_classifier(model, inputs, torch.tensor([0, 1, 1]), epochs=1)
    Traceback (most recent call last):
    ValueError: labels must have shape (2,), one class for each input, got (3,)
    """
    check_labelled(inputs, labels)
    check_count(epochs, "epochs")
    check_count(batch_size, "batch_size")
    check_positive(lr, "lr")
    if schedule is not None and schedule.optimizer is not optimizer:
        raise ValueError("schedule must be one of the optimizer that is passed beside it")
    generator = generator or torch.Generator().manual_seed(0)
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=lr)
    history = []
    model.train()
    for epoch in trange(1, epochs + 1, desc="epochs", disable=not progress):
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        totals = torch.zeros(3, dtype=torch.float64)
        for batch in torch.split(order, batch_size):
            x, y = inputs[batch], labels[batch]
            logits = model(x)
            loss = criterion(logits, y)
            added = torch.zeros_like(loss) if penalty is None else penalty(x, y)
            optimizer.zero_grad()
            (loss + added).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if schedule is not None:
                schedule.step()
            right = (logits.argmax(1) == y).double().mean()
            means = torch.stack([loss.detach().double(), added.detach().double(), right]).cpu()
            if not bool(means.isfinite().all()):
                raise FloatingPointError(
                    f"training diverged in epoch {epoch}: the loss is {loss.item()} and the "
                    f"penalty {added.item()}; lower lr={optimizer.param_groups[0]['lr']}, weaken "
                    "the penalty, or train in float32 (Adam's eps underflows in float16)"
                )
            totals += means * len(batch)
        history.append((epoch, *(totals / len(labels)).tolist()))
    model.eval()
    return pd.DataFrame(history, columns=["epoch", "loss", "penalty", "accuracy"])


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Fraction of the inputs whose largest logit is that of their label, in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        From inputs to logits of shape (n, n_classes).
    inputs : Tensor, shape (n, ...)
        On the device and of the dtype of the model.
    labels : Tensor, shape (n,)
        int64 classes from 0.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    TypeError, ValueError
        If the inputs are no finite floating-point tensor, or the labels no matching classes.

    Examples
    --------
    >>> accuracy(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 0]))
    0.75
    >>> accuracy(nn.Identity(), torch.eye(2), torch.eye(2))
    Traceback (most recent call last):
    TypeError: labels must be an int64 tensor, got torch.float32; labels.long() converts it
    """
    check_labelled(inputs, labels)
    with evaluation_mode(model):
        return float((model(inputs).argmax(1) == labels).double().mean())


def digits_reader(
    seed: int = 0, *, epochs: int = 60, device: torch.device | str = "cpu"
) -> tuple[nn.Sequential, Splits]:
    """Train the network that chapters 1 to 3 follow: it reads 8×8 digits.

    Two hidden layers of 64 ReLUs between 64 grey values in [0, 1] and 10 logits, trained with
    Adam. About one test image in thirty is misread.

    Parameters
    ----------
    seed : int, default 0
        Decides the split of the data, the first weights and the order of the batches.
    epochs : int, default 60
        Passes over the training set.
    device : torch.device or str, default "cpu"
        Where network and data end up.

    Returns
    -------
    tuple of Sequential and Splits
        The trained network, and the data as training, validation and test sets.

    Examples
    --------
    >>> network, splits = digits_reader(seed=0)
    >>> accuracy(network, *splits.test) > 0.9
    True
    """
    network, splits, shuffle = _untrained_reader(seed, device)
    train_classifier(network, *splits.train, epochs=epochs, generator=shuffle)
    return network, splits


@torch.inference_mode(False)
@torch.enable_grad()
def digits_readers(
    seeds: Sequence[int], *, epochs: int = 60, device: torch.device | str = "cpu"
) -> list[tuple[nn.Sequential, Splits]]:
    """Train a `digits_reader` for each seed side by side: several in not much more than one's time.

    The weights are those of `digits_reader` but for rounding, which a long training magnifies.

    Parameters
    ----------
    seeds : sequence of int
        One a network, as in `digits_reader`.
    epochs : int, default 60
        Passes over each network's training set.
    device : torch.device or str, default "cpu"
        Where networks and data end up.

    Returns
    -------
    list of tuple of Sequential and Splits
        In the order of the seeds: each trained network, and its data.

    Examples
    --------
    >>> [(one, _), (other, splits)] = digits_readers([3, 4], epochs=10)
    >>> accuracy(other, *splits.test) > 0.8
    True
    >>> digits_readers([])
    []
    """
    check_count(epochs, "epochs")
    readers = [_untrained_reader(seed, device) for seed in seeds]
    if not readers:
        return []
    networks, splits, shuffles = zip(*readers, strict=True)
    together = SideBySide(networks)
    optimizer = torch.optim.Adam(together.parameters(), lr=1e-3)
    for _ in range(epochs):
        for inputs, labels in _batches([each.train for each in splits], shuffles):
            loss = F.cross_entropy(together(inputs), labels)
            optimizer.zero_grad()
            # The networks' mean losses, summed: each has the gradient that it has alone.
            (len(networks) * loss).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    together.copy_into(networks)
    for network in networks:
        network.eval()
    return list(zip(networks, splits, strict=True))


def _untrained_reader(
    seed: int, device: torch.device | str
) -> tuple[nn.Sequential, Splits, torch.Generator]:
    """Return network, data and the order of the batches, all of them decided by the seed."""
    splits = split(digits(), seed=seed).to(torch.device(device))
    torch.manual_seed(seed)
    return mlp([64, 64, 64, 10]).to(device), splits, torch.Generator().manual_seed(seed)


def _batches(
    sets: Sequence[LabelledData], shuffles: Sequence[torch.Generator], size: int = 64
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass once over sets of equal size, each in its own order: its batches beside the others'."""
    orders = [
        torch.split(torch.randperm(len(labels), generator=shuffle).to(labels.device), size)
        for (_, labels), shuffle in zip(sets, shuffles, strict=True)
    ]
    for batch in zip(*orders, strict=True):
        shares = [(x[own], y[own]) for (x, y), own in zip(sets, batch, strict=True)]
        inputs, labels = zip(*shares, strict=True)
        yield torch.cat(inputs), torch.cat(labels)


def first_flipped(network: nn.Module, test: LabelledData, *, radius: float = 0.5) -> int:
    """Find the image that chapters 1 to 3 follow: the first one that a short aimed step flips.

    Parameters
    ----------
    network : nn.Module
        From inputs to logits.
    test : LabelledData
        Inputs in [0, 1], which the step does not leave.
    radius : float, default 0.5
        Length of the step, in the l2 norm, by `l2_attack`.

    Returns
    -------
    int
        The index of the first input that the network reads as its label says, and misreads after
        the step.

    Raises
    ------
    ValueError
        If no step of that length flips a correct answer.

    Examples
    --------
    >>> images = torch.tensor([[0.9, 0.1], [0.4, 0.5], [0.5, 0.4]])
    >>> test = LabelledData(images, torch.tensor([0, 0, 0]))  # the second is misread
    >>> first_flipped(nn.Identity(), test, radius=0.2)
    2
    >>> first_flipped(nn.Identity(), test, radius=0.01)
    Traceback (most recent call last):
    ValueError: a step of radius=0.01 flips none of the 2 correct answers; a longer one may
    """
    inputs, labels = test
    attacked = l2_attack(network, inputs, labels, radius, box=(0, 1))
    with torch.no_grad(), evaluation_mode(network):
        correct = network(inputs).argmax(1) == labels
        flipped = correct & (network(attacked).argmax(1) != labels)
    if not bool(flipped.any()):
        raise ValueError(
            f"a step of {radius=} flips none of the {int(correct.sum())} correct answers; "
            "a longer one may"
        )
    return int(flipped.nonzero()[0])
