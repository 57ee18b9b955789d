"""The small networks of the book, their training and their accuracy.

Weights come from torch's global generator: call ``torch.manual_seed`` (or the seeding of
`lipbook.runtime`) right before building a model, and the same seed gives the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from lipbook.validation import check_count, check_positive, check_tensor


@contextmanager
def evaluation_mode(f: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Switch every module in `f` to evaluation mode, and back to its own mode at the end.

    Dropout and BatchNorm are functions of one input only in evaluation mode. A plain function is
    left alone.

    Examples
    --------
    >>> dropout = nn.Dropout(0.5)
    >>> with evaluation_mode(dropout):
    ...     dropout(torch.ones(3)), dropout.training
    (tensor([1., 1., 1.]), False)
    >>> dropout.training
    True
    """
    modes = {m: m.training for m in f.modules()} if isinstance(f, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def mlp(
    sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, *, bias: bool = True
) -> nn.Sequential:
    """Dense layers with an activation between them, and none after the last.

    Parameters
    ----------
    sizes : sequence of int
        Width of the input, of each hidden layer, and of the output.
    activation : callable, default torch.nn.ReLU
        Makes one activation module.
    bias : bool, default True
        Whether the dense layers have one.

    Returns
    -------
    nn.Sequential
        From shape (n, sizes[0]) to (n, sizes[-1]).

    Examples
    --------
    >>> mlp([2, 16, 1], nn.Tanh)(torch.zeros(5, 2)).shape
    torch.Size([5, 1])
    >>> mlp([2])
    Traceback (most recent call last):
    ValueError: sizes must hold at least an input and an output width, got [2]
    """
    if len(sizes) < 2:
        raise ValueError(
            f"sizes must hold at least an input and an output width, got {list(sizes)}"
        )
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(check_count(width, "sizes") for width in sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def digits_cnn(
    channels: tuple[int, int] = (8, 16), activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Two 3×3 convolutions (the second of stride 2) and a dense layer, for the 8×8 digits.

    It takes flat images, as `mlp` does.

    Parameters
    ----------
    channels : tuple of int, default (8, 16)
        Output channels of the two convolutions.
    activation : callable, default torch.nn.ReLU
        Makes one activation module.

    Returns
    -------
    nn.Sequential
        From shape (n, 64) to (n, 10).

    Examples
    --------
    >>> digits_cnn()(torch.zeros(5, 64)).shape
    torch.Size([5, 10])
    >>> digits_cnn((0, 16))
    Traceback (most recent call last):
    ValueError: channels must be at least 1, got 0
    """
    first, second = (check_count(width, "channels") for width in channels)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, first, 3, padding=1),
        activation(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        activation(),
        nn.Flatten(),
        nn.Linear(second * 16, 10),
    )


def vgg(
    input_shape: Sequence[int], n_classes: int, *, widths: Sequence[int] = (32, 64, 128)
) -> nn.Sequential:
    """Blocks of two 3×3 convolutions and a 2×2 max pooling, then a dense layer.

    The plan of Simonyan & Zisserman 2015, small, and without BatchNorm, before which the norm of a
    weight says nothing about the function (chapter 2).

    Parameters
    ----------
    input_shape : sequence of int
        (channels, height, width) of one image; each block halves height and width.
    n_classes : int
        Width of the output.
    widths : sequence of int, default (32, 64, 128)
        Channels of each block.

    Returns
    -------
    nn.Sequential
        From shape (n, *input_shape) to (n, n_classes).

    Examples
    --------
    >>> vgg((3, 32, 32), 5)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    >>> vgg((3, 4, 4), 5)
    Traceback (most recent call last):
    ValueError: input_shape must be at least 8×8 for 3 blocks, got (3, 4, 4)
    """
    channels, height, width = (check_count(n, "input_shape") for n in input_shape)
    halved = 2 ** len(widths)
    if min(height, width) < halved:
        raise ValueError(
            f"input_shape must be at least {halved}×{halved} for {len(widths)} blocks, "
            f"got {tuple(input_shape)}"
        )
    layers: list[nn.Module] = []
    for after in (check_count(width, "widths") for width in widths):
        for before in (channels, after):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = after
    pixels = (height // halved) * (width // halved)
    dense = nn.Linear(channels * pixels, check_count(n_classes, "n_classes"))
    return nn.Sequential(*layers, nn.Flatten(), dense)


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
    >>> model = mlp([1, 2])
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


def check_labelled(inputs: Tensor, labels: Tensor) -> None:
    """Refuse inputs that are no finite floating-point batch, or labels that do not match them.

    Raises
    ------
    TypeError
        If `inputs` has no floating-point dtype or `labels` another dtype than int64.
    ValueError
        If `inputs` is empty or not finite, or the lengths differ.

    Examples
    --------
    >>> check_labelled(torch.ones(2, 3), torch.tensor([0, 1]))
    >>> check_labelled(torch.ones(2, 3), torch.tensor([0]))
    Traceback (most recent call last):
    ValueError: labels must have shape (2,), one class for each input, got (1,)
    """
    check_tensor(inputs, "inputs", min_ndim=1)
    dtype = getattr(labels, "dtype", type(labels).__name__)
    if dtype != torch.int64:
        raise TypeError(f"labels must be an int64 tensor, got {dtype}; labels.long() converts it")
    if labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"labels must have shape {tuple(inputs.shape[:1])}, one class for each input, "
            f"got {tuple(labels.shape)}"
        )
