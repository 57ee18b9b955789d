"""The small networks of the book.

Weights come from torch's global generator: call ``torch.manual_seed`` (or the seeding of
`lipbook.notebook.runtime`) right before building a model, and the same seed gives the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from lipbook._checks import check_count


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
    >>> import torch
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
    >>> import torch
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
    >>> import torch
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
