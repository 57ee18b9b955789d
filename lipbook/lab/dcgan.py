"""The convolutional critic and generator of the article's example, and smaller ones of their kind.

The defaults are the example's: faces of 64×64, four convolutions of stride 2, LeakyReLU of slope
0.3 and the like. Networks for 32×32 patches and 8×8 digits have fewer and narrower layers of the
same kind. Images lie in [−1, 1], the range of tanh. Weights come from torch's global generator, as
in `models`; a convolution pads by 2 on every side, where Keras pads by 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from lipbook._checks import check_count

_LEAK = 0.3  # Keras's default slope
_SMALLEST = 4  # the example convolves down to 4×4 pixels


def dcgan_critic(
    image_shape: Sequence[int] = (3, 64, 64),
    *,
    width: int = 64,
    depth: int | None = None,
    batch_norm: bool = False,
) -> nn.Sequential:
    """5×5 convolutions of stride 2 that double the channels, and a dense unit without a bias.

    Parameters
    ----------
    image_shape : sequence of int, default (3, 64, 64)
        (channels, height, width) of one image.
    width : int, default 64
        Channels after the first convolution.
    depth : int, optional
        Number of convolutions; by default as many as bring the shorter side down to 4 pixels.
    batch_norm : bool, default False
        Whether a BatchNorm follows each convolution but the first, as in the example. A critic
        with it scores batches, not samples.

    Returns
    -------
    nn.Sequential
        From shape (n, *image_shape) to (n, 1).

    Raises
    ------
    TypeError, ValueError
        If a number is not positive, or the image cannot be halved `depth` times.

    Examples
    --------
    >>> import torch
    >>> critic = dcgan_critic(batch_norm=True)
    >>> [layer.out_channels for layer in critic if isinstance(layer, nn.Conv2d)]
    [64, 128, 256, 512]
    >>> dcgan_critic((1, 8, 8), width=8, depth=2)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 1])
    >>> dcgan_critic((1, 8, 8), depth=4)
    Traceback (most recent call last):
    ValueError: image_shape must have sides divisible by 16 to be halved 4 times, got (1, 8, 8)
    """
    (channels, height, breadth), depth = _checked(image_shape, depth)
    layers: list[nn.Module] = []
    widths = [channels, *(check_count(width, "width") * 2**k for k in range(depth))]
    for before, after in pairwise(widths):
        layers.append(nn.Conv2d(before, after, 5, stride=2, padding=2))
        if batch_norm and len(layers) > 1:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.LeakyReLU(_LEAK))
    pixels = (height >> depth) * (breadth >> depth)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * pixels, 1, bias=False))


def dcgan_generator(
    image_shape: Sequence[int] = (3, 64, 64),
    latent_dim: int = 100,
    *,
    width: int = 64,
    depth: int | None = None,
) -> nn.Sequential:
    """Build the mirror image of `dcgan_critic`: transposed convolutions with BatchNorm and ReLU.

    Parameters
    ----------
    image_shape : sequence of int, default (3, 64, 64)
        (channels, height, width) of one image.
    latent_dim : int, default 100
        Number of latents of a sample.
    width : int, default 64
        Channels before the last transposed convolution.
    depth : int, optional
        Number of transposed convolutions; by default as many as lead from 4 pixels to the shorter
        side.

    Returns
    -------
    nn.Sequential
        From shape (n, latent_dim) to (n, *image_shape), with values in (−1, 1).

    Raises
    ------
    TypeError, ValueError
        If a number is not positive, or the image cannot be halved `depth` times.

    Examples
    --------
    >>> import torch
    >>> generator = dcgan_generator((1, 8, 8), 16, width=8)
    >>> generator(torch.zeros(5, 16)).shape
    torch.Size([5, 1, 8, 8])
    >>> dcgan_generator((1, 8, 8), 0)
    Traceback (most recent call last):
    ValueError: latent_dim must be at least 1, got 0
    """
    (channels, height, breadth), depth = _checked(image_shape, depth)
    top, *widths = [check_count(width, "width") * 2**k for k in reversed(range(depth))]
    smallest = (top, height >> depth, breadth >> depth)
    pixels = smallest[0] * smallest[1] * smallest[2]
    layers: list[nn.Module] = [
        nn.Linear(check_count(latent_dim, "latent_dim"), pixels),
        nn.BatchNorm1d(pixels),
        nn.ReLU(),
        nn.Unflatten(1, smallest),
    ]
    for before, after in pairwise([top, *widths]):
        layers += [_doubled(before, after), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, _doubled(width, channels), nn.Tanh())


def _doubled(before: int, after: int) -> nn.ConvTranspose2d:
    """Return a transposed convolution that doubles height and width."""
    return nn.ConvTranspose2d(before, after, 5, stride=2, padding=2, output_padding=1)


def _checked(image_shape: Sequence[int], depth: int | None) -> tuple[list[int], int]:
    if len(image_shape) != 3:
        raise ValueError(f"image_shape must be (channels, height, width), got {tuple(image_shape)}")
    shape = [check_count(side, "image_shape") for side in image_shape]
    if depth is None:
        depth = max(1, (min(shape[1:]) // _SMALLEST).bit_length() - 1)
    halved = 2 ** check_count(depth, "depth")
    if shape[1] % halved or shape[2] % halved:
        raise ValueError(
            f"image_shape must have sides divisible by {halved} to be halved {depth} times, "
            f"got {tuple(image_shape)}"
        )
    return shape, depth
