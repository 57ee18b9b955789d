"""The study of chapter 4: a fair protocol, and the comparison on a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lipbook.lab.networks import mlp
from studies import regularization as study


def test_every_method_has_as_many_strengths_to_choose_from():
    for grids in study.GRIDS.values():
        assert {len(grid) for method, grid in grids.items() if method != "none"} == {5}
        assert all(len(set(grid)) == len(grid) for grid in grids.values())


def test_every_setting_has_all_methods_and_ten_seeds():
    cells = pd.DataFrame(study.cells())
    assert not cells.duplicated().any()
    for (model, *_), group in cells.groupby(["model", "n_train", "noise"]):
        assert set(group["method"]) == set(study.GRIDS[model])
        assert (group.groupby("method")["seed"].nunique() == 10).all()


def test_methods_share_data_weights_and_order():
    first, again = (study.noisy_digits(100, 0.4, 3) for _ in range(2))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(first, again, strict=True))
    models = [study.build("mlp", method, 0.5, 3) for method in ("none", "l2", "dropout")]
    weights = [torch.nn.utils.parameters_to_vector(m.parameters()) for m in models]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    # A strength of almost nothing leaves the training as it is: the batches are the same.
    results = []
    for method, strength in (("none", 0.0), ("l2", 1e-15), ("spectral", 1e-15)):
        model = study.build("mlp", method, strength, 3)
        study.train(model, first.train, method, strength, epochs=3, seed=3)
        results.append(model[0].weight.detach())
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_the_noise_is_in_training_and_validation_only(noise):
    true, noisy = (study.noisy_digits(200, share, 0) for share in (0.0, noise))
    wrong = [
        (a.labels != b.labels).double().mean().item() for a, b in zip(true, noisy, strict=True)
    ]
    assert wrong == pytest.approx([noise, noise, 0.0])
    assert [len(part.labels) for part in noisy] == [200, 400, 600]


def test_the_best_on_validation_is_selected_and_of_equals_the_strongest():
    cell = {"model": "mlp", "n_train": 100, "noise": 0.0, "method": "l2", "seed": 0}
    rows = [
        {**cell, "strength": strength, "validation": accuracy}
        for strength, accuracy in ((1.0, 0.5), (2.0, 0.9), (4.0, 0.9), (8.0, 0.1))
    ]
    rows += [{**cell, "seed": 1, "strength": 1.0, "validation": 0.2}]
    assert study.select(pd.DataFrame(rows))["strength"].tolist() == [4.0, 1.0]


def test_only_weights_decay():
    model = mlp([64, 8, 10]).double()
    examples = study.noisy_digits(100, 0.0, 0).train
    before = [p.detach().clone() for p in model.parameters()]
    study.train(model, examples, "weight decay", 1e3, epochs=1, seed=0, lr=1e-4)
    shrunk = [
        (after.norm() / first.norm()).item()
        for after, first in zip(model.parameters(), before, strict=True)
    ]
    assert max(shrunk[::2]) < 0.9 < min(shrunk[1::2])  # weights, then biases


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of thirty images each, of different sizes: dark ones and bright ones."""
    generator = np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 190)):
        (tmp_path / name).mkdir()
        for i in range(30):
            shape = (20 + i % 3, 24, 3)
            pixels = generator.normal(level, 30, shape).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i:02}.png")
    return tmp_path


def test_a_folder_of_images_is_learnt_by_every_method(photos, monkeypatch):
    ends = {method: (grid[0], grid[-1]) for method, grid in study.IMAGE_GRIDS.items()}
    monkeypatch.setattr(study, "IMAGE_GRIDS", ends | {"none": (0.0,), "l2": (1e-3,)})
    table = study.on_images(photos, size=16, epochs=3)
    assert list(table) == ["method", "strength", "train", "validation", "test", "product"]
    assert table["method"].unique().tolist() == ["none", "l2", "spectral"]
    assert len(table) == sum(map(len, study.IMAGE_GRIDS.values()))
    assert table.groupby("method")["test"].max().min() > 0.8
    by_strength = table.query("method == 'spectral'")["product"]
    assert by_strength.iloc[-1] < by_strength.iloc[0]


@pytest.mark.parametrize("classes", [0, 1])
def test_a_folder_that_will_not_do_is_refused(tmp_path, classes):
    for name in ["only"][:classes]:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="at least two subfolders, one a class"):
        study.on_images(tmp_path)


def test_too_few_images_are_refused(photos):
    for i in range(25):
        (photos / "dark" / f"{i:02}.png").unlink()
    with pytest.raises(ValueError, match="at least 10 images"):
        study.on_images(photos)


def test_an_image_that_cannot_be_read_is_named(photos):
    (photos / "bright" / "00.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"00\.png"):
        study.on_images(photos)
