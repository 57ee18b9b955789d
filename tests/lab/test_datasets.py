"""Pictures without a download: drawn once, kept, and what their labels say."""

import gzip

import numpy as np
import pytest
import torch

from lipbook.lab import datasets
from lipbook.lab.datasets import ATTRIBUTES, faces, fashion, mnist, scaled, stored


@pytest.fixture
def kept(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(datasets, "_CLONE", tmp_path)
    return tmp_path / "build" / "data"


def test_a_face_depends_on_its_seed_and_number_alone(kept):
    few, many, other = faces(2, 5, size=16), faces(4, 5, size=16), faces(2, 6, size=16)
    assert torch.equal(many.pixels[:2], few.pixels)
    assert torch.equal(many.labels[:2], few.labels)
    assert not torch.equal(few.labels, other.labels)


def test_faces_are_coloured_on_white_and_have_their_labels(kept):
    pixels, labels = faces(12, 0, size=32)
    assert pixels.dtype == torch.uint8
    assert (pixels[:, :, 0, 0] == 255).float().mean() > 0.8  # a corner, but for big hair
    assert (pixels.float().std(dim=(0, 2, 3)) > 30).all()
    sizes = torch.tensor([len(values) for values in ATTRIBUTES.values()])
    assert ((labels >= 0) & (labels < sizes)).all()
    assert (labels.amin(0) < labels.amax(0)).all()


def test_bare_heads_are_the_same_heads(kept):
    with_features, without = (faces(8, 0, size=64, features=features) for features in (True, False))
    assert torch.equal(with_features.labels, without.labels)
    differ = (with_features.pixels != without.pixels).any(1)
    assert differ.flatten(1).any(1).all()
    rows, columns = differ.any(0).nonzero(as_tuple=True)
    # Brows to mouth, and from one hinge of the glasses to the other.
    assert rows.min() >= 18
    assert rows.max() <= 44
    assert columns.min() >= 14
    assert columns.max() <= 50
    assert sorted(path.name for path in kept.iterdir()) == ["faces-0-64.npz", "heads-0-64.npz"]


def test_every_pair_of_glasses_is_left_out():
    kinds = {key: values[0] for key, values in (ATTRIBUTES | datasets._VARIED).items()}
    bare = datasets._face(kinds, 32, features=False)
    for attribute in ("glasses", "mouth"):
        for value in ATTRIBUTES[attribute]:
            drawn = datasets._face(kinds | {attribute: value}, 32, features=False)
            assert (drawn == bare).all(), value


def test_labels_say_what_is_drawn(kept):
    kinds = {key: values[0] for key, values in (ATTRIBUTES | datasets._VARIED).items()}
    bald = datasets._face(kinds, 32)
    for attribute, values in ATTRIBUTES.items():
        other = datasets._face(kinds | {attribute: values[-1]}, 32)
        # The colour of hair shows in no bald face without a beard.
        assert (other != bald).any() == (attribute != "hair colour")


def test_what_was_made_is_kept_until_more_is_asked_for(kept):
    made = []

    def make(n):
        made.append(n)
        return {"x": np.arange(n)}

    assert len(stored("x", 3, lambda: make(3))["x"]) == 3
    assert len(stored("x", 2, lambda: make(2))["x"]) == 3
    assert len(stored("x", 9, lambda: make(9))["x"]) == 9
    assert made == [3, 9]
    assert [path.name for path in kept.iterdir()] == ["x.npz"]


def test_mnist_is_balanced_in_any_part():
    pixels, labels = mnist()
    assert pixels.shape == (5000, 1, 28, 28)
    assert labels.bincount().tolist() == [500] * 10
    assert labels[:1000].bincount().min() > 70
    ink = pixels.float().mean(dim=(0, 1))
    assert ink[10:18, 10:18].mean() > 10 * ink[:4].mean()  # in the middle
    ones, zeros = (pixels[labels == digit].float().mean() for digit in (1, 0))
    assert zeros > 1.5 * ones


def test_bytes_become_the_range_of_tanh():
    assert scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


@pytest.mark.parametrize("wrong", [{"n": 0}, {"seed": -1}, {"size": 0}])
def test_counts_are_checked(wrong):
    with pytest.raises(ValueError, match="must be at least"):
        faces(**{"n": 1, "seed": 0, "size": 8, **wrong})


def idx(values):
    values = np.asarray(values, np.uint8)
    lengths = np.array(values.shape, ">i4").tobytes()
    return bytes([0, 0, 8, values.ndim]) + lengths + values.tobytes()


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_fashion_is_read_as_torchvision_and_debian_lay_it_out(tmp_path, place, ending):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256, [7, 3]
    for name, values in (("images-idx3", pixels), ("labels-idx1", labels)):
        data = idx(values)
        path = folder / f"train-{name}-ubyte{ending}"
        path.write_bytes(gzip.compress(data) if ending else data)
    found = fashion(tmp_path)
    assert found.pixels.dtype == torch.uint8
    assert torch.equal(found.pixels[:, 0], torch.as_tensor(pixels, dtype=torch.uint8))
    assert found.labels.tolist() == labels


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx([1, 2]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx([1, 2]))
    with pytest.raises(ValueError, match="must be an IDX file of bytes with 3 axes"):
        fashion(tmp_path)
