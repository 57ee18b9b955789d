"""The networks of the article's example, and smaller ones of their kind."""

import pytest
import torch
from torch import nn

from lipbook.lab.dcgan import dcgan_critic, dcgan_generator

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def kinds(net: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in net]


def channels(net: nn.Sequential) -> list[tuple[int, int]]:
    return [(c.in_channels, c.out_channels) for c in net if isinstance(c, CONVOLUTIONS)]


def test_the_default_critic_is_the_articles():
    critic = dcgan_critic(batch_norm=True)
    block = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds(critic) == ["Conv2d", "LeakyReLU", *block * 3, "Flatten", "Linear"]
    assert channels(critic) == [(3, 64), (64, 128), (128, 256), (256, 512)]
    assert [n.num_features for n in critic if isinstance(n, BATCH_NORMS)] == [128, 256, 512]
    assert {r.negative_slope for r in critic if isinstance(r, nn.LeakyReLU)} == {0.3}
    assert critic[-1].weight.shape == (1, 512 * 4 * 4)
    assert critic[-1].bias is None
    assert critic(torch.zeros(2, 3, 64, 64)).shape == (2, 1)


def test_the_default_generator_is_the_articles():
    generator = dcgan_generator()
    block = ["ConvTranspose2d", "BatchNorm2d", "ReLU"]
    dense = ["Linear", "BatchNorm1d", "ReLU", "Unflatten"]
    assert kinds(generator) == [*dense, *block * 3, "ConvTranspose2d", "Tanh"]
    assert generator[0].weight.shape == (4 * 4 * 512, 100)
    assert generator[3].unflattened_size == (512, 4, 4)
    assert channels(generator) == [(512, 256), (256, 128), (128, 64), (64, 3)]
    widths = [n.num_features for n in generator if isinstance(n, BATCH_NORMS)]
    assert widths == [8192, 256, 128, 64]
    assert generator(torch.zeros(2, 100)).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("build", [dcgan_critic, dcgan_generator])
def test_every_convolution_is_5_by_5_of_stride_2_with_a_bias(build):
    for layer in build():
        if isinstance(layer, CONVOLUTIONS):
            assert (layer.kernel_size, layer.stride) == ((5, 5), (2, 2))
            assert layer.bias is not None


@pytest.mark.parametrize(
    ("shape", "depth", "smallest"),
    [
        ((3, 64, 64), None, (32, 4, 4)),
        ((3, 32, 32), None, (16, 4, 4)),
        ((1, 8, 8), None, (4, 4, 4)),
        ((1, 8, 8), 2, (8, 2, 2)),
        ((1, 8, 8), 3, (16, 1, 1)),
        ((2, 8, 16), None, (4, 4, 8)),
        ((2, 24, 16), None, (8, 6, 4)),
        ((1, 4, 4), None, (4, 2, 2)),
    ],
)
def test_smaller_networks_mirror_each_other(shape, depth, smallest):
    critic = dcgan_critic(shape, width=4, depth=depth)
    generator = dcgan_generator(shape, 6, width=4, depth=depth)
    assert not any(isinstance(layer, BATCH_NORMS) for layer in critic)
    assert critic[:-2](torch.zeros(2, *shape)).shape == (2, *smallest)
    assert generator[:4](torch.zeros(2, 6)).shape == (2, *smallest)
    assert [pair[::-1] for pair in channels(critic)[::-1]] == channels(generator)
    images = generator(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (5, *shape)
    assert images.abs().max() < 1
    assert critic(images).shape == (5, 1)


def test_only_a_critic_with_batch_norm_scores_batches():
    torch.manual_seed(0)
    images = torch.randn(4, 1, 8, 8)
    for batch_norm in (False, True):
        critic = dcgan_critic((1, 8, 8), width=4, depth=2, batch_norm=batch_norm)
        alone = torch.allclose(critic(images)[:2], critic(images[:2]), atol=1e-6)
        assert alone is not batch_norm


@pytest.mark.parametrize("build", [dcgan_critic, dcgan_generator])
def test_weights_depend_on_the_global_seed_alone(build):
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build((1, 8, 8), width=4).parameters())

    assert torch.equal(weights(7), weights(7))
    assert not torch.equal(weights(7), weights(8))


@pytest.mark.parametrize("build", [dcgan_critic, dcgan_generator])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image_shape": (8, 8)}, ValueError, r"\(channels, height, width\), got \(8, 8\)"),
        ({"image_shape": (0, 8, 8)}, ValueError, "image_shape must be at least 1, got 0"),
        ({"image_shape": (1, 8, 8.0)}, TypeError, "image_shape must be an integer"),
        ({"image_shape": (1, 8, 7)}, ValueError, r"divisible by 2 .* 1 times, got \(1, 8, 7\)"),
        ({"image_shape": (1, 16, 36), "depth": 3}, ValueError, "divisible by 8 .* 3 times"),
        ({"image_shape": (1, 36, 16), "depth": 3}, ValueError, "divisible by 8 .* 3 times"),
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": True}, TypeError, "depth must be an integer, got bool"),
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"width": 4.0}, TypeError, "width must be an integer, got float"),
    ],
)
def test_refusals(build, arguments, error, message):
    with pytest.raises(error, match=message):
        build(**arguments)


@pytest.mark.parametrize(("latent_dim", "error"), [(0, ValueError), (2.0, TypeError)])
def test_the_generator_refuses_latents_that_are_no_count(latent_dim, error):
    with pytest.raises(error, match="latent_dim must be"):
        dcgan_generator((1, 8, 8), latent_dim)
