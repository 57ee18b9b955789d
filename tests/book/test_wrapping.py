"""Where a line may break; that no page breaks elsewhere is seen in test_book_site.py."""

import pytest
from wrapping import with_breaks


def code(text):
    return f'<span class="pre">{text}</span>'


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("milliseconds", ["milliseconds"]),
        ("clip_weights_", ["clip_", "weights_"]),
        ("nn.ReLU", ["nn.", "ReLU"]),
        ("OrthonormalPenalty", ["Orthonormal", "Penalty"]),
        ("tests/a.py::test_b", ["tests/", "a.", "py::", "test_", "b"]),
        ("0.05", ["0.05"]),
        ("_rules", ["_rules"]),
    ],
)
def test_a_name_in_a_table_is_broken_at_its_joints(name, parts):
    assert (
        with_breaks(f"<table>{code(name)}</table>") == f"<table>{code('<wbr>'.join(parts))}</table>"
    )


def test_a_name_in_a_sentence_is_broken_if_it_is_long():
    assert with_breaks(code("lipbook.spectral_norm")) == code("lipbook.spectral_norm")
    assert "<wbr>" in with_breaks(code("torch.nn.utils.parametrizations.spectral_norm"))


@pytest.mark.parametrize("around", [("", "."), ("(", "),"), ("", "-th")])
def test_a_stop_stays_with_its_formula(around):
    before, after = around
    formula = rf'{before}<span class="math notranslate">\(k\)</span>{after}'
    assert (
        with_breaks(f"<p>A {formula} b</p>") == f'<p>A <span class="whole">{formula}</span> b</p>'
    )


@pytest.mark.parametrize("number", ["12", '<span class="pasted-text">12</span>'])
def test_a_percentage_is_one_word(number):
    assert with_breaks(f"<p>{number} % of it</p>") == f"<p>{number}\N{NO-BREAK SPACE}% of it</p>"


def test_all_else_stays_as_it_is():
    page = '<p>A <span class="math notranslate">x</span> b, a_b.c</p><pre>a_b <span>5</span></pre>'
    assert with_breaks(page) == page
