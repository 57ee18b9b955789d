"""Three things to touch: ``{touch} ellipse``, ``{touch} iteration``, ``{touch} two-points``.

The page gets native inputs and a picture in SVG, drawn here for paper and for readers without
scripts; ``touch.js`` then moves the same shapes. The directive's content is the caption. What the
script should show for some settings is computed here, by lipbook, and written beside: the tests
of the site set the inputs and compare.
"""

import functools
import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torch import Tensor, nn

from lipbook.matrix_norms import frobenius_norm, induced_norm
from lipbook.power_iteration import power_iteration
from lipbook.wgan import critic_loss, gradient_penalty

Setting = dict[str, float]
_ENTRIES = ("a", "b", "c", "d")
_W = "<em>W</em>"
_AXES = '<path class="axes" d="M-3.3 0H3.3M0-3.3V3.3"/>'


class Ellipse:
    """What a 2×2 matrix makes of the unit circle."""

    label = "The unit circle, and the ellipse that the matrix W makes of it, with its half axes"
    numbers = {  # noqa: RUF012
        "sigma1": "σ₁",
        "sigma2": "σ₂",
        "frobenius": f"‖{_W}‖<sub>F</sub>",
        "eigenvalue": "|λ|<sub>max</sub>",
    }
    settings = tuple(
        dict(zip(_ENTRIES, entries, strict=True))
        for entries in (
            (1.5, 0.5, 0.5, 1),  # symmetric: all is well
            (1, 1, 0, 1),  # the shear
            (0, 1, 0, 0),  # the counterexample to PI2
            (0, -2, 2, 0),  # a turn: normal, with complex eigenvalues
            (-1.5, 2.4, -0.7, 0.3),
            (0, 0, 0, 0),
        )
    )

    @staticmethod
    def values(setting: Setting) -> dict[str, float]:
        """Return the numbers of a matrix."""
        matrix = _matrix(setting)
        return {
            "sigma1": induced_norm(matrix).item(),
            "sigma2": torch.linalg.svdvals(matrix)[1].item(),
            "frobenius": frobenius_norm(matrix).item(),
            "eigenvalue": torch.linalg.eigvals(matrix).abs().max().item(),
        }

    @staticmethod
    def picture(setting: Setting) -> Iterator[str]:
        """Draw circle, ellipse, half axes and the two tips."""
        matrix = _matrix(setting)
        U, sigma, _ = torch.linalg.svd(matrix)
        axes = "".join(
            f'<path class="{name}" data-shape="{name}" d="{_segment(-s * u, s * u)}"/>'
            for name, s, u in zip(("first", "second"), sigma, U.T, strict=True)
        )
        tips = "".join(_handle(name, column) for name, column in zip("pq", matrix.T, strict=True))
        yield (
            f'<g transform="scale(1,-1)">{_AXES}<circle class="circle" r="1"/>'
            f"{_ellipse(matrix)}{axes}{tips}</g>{_name('p', 'We₁', matrix[:, 0])}"
            f"{_name('q', 'We₂', matrix[:, 1])}"
        )

    @staticmethod
    def inputs(setting: Setting) -> str:
        """Return the fields of the matrix and three matrices to begin with."""
        shear, turn = {"a": 1, "b": 1, "c": 0, "d": 1}, {"a": 0.6, "b": -0.8, "c": 0.8, "d": 0.6}
        buttons = [_button("Shear", shear), _button("Turn", turn), _button("Reset", setting)]
        return f"{_matrix_fields(setting)}<p>{' '.join(buttons)}</p>"


class Iteration:
    """Power iteration on a 2×2 matrix, from a start that is dragged."""

    label = "The iterates on the unit circle, and the estimate after each one beside the norm"
    numbers = {"estimate": f"‖{_W}<em>u</em>‖", "sigma1": "σ₁", "sigma2": "σ₂"}  # noqa: RUF012
    settings = tuple(
        dict(zip((*_ENTRIES, "angle", "steps"), numbers, strict=True))
        for numbers in (
            (2, -1, -1, 2, 60, 4),
            (2, -1, -1, 2, 45, 12),  # the trap: all ones
            (2, -1, -1, 2, 46, 12),
            (1, 1, 0, 1, -170, 3),
            (-1.5, 2.4, -0.7, 0.3, 120, 1),
            (0, 1, 0, 0, 0, 2),  # the start is sent to zero
        )
    )

    @staticmethod
    def values(setting: Setting) -> dict[str, float]:
        """Return the library's estimate, and both singular values."""
        matrix = _matrix(setting)
        found = power_iteration(matrix, int(setting["steps"]), init=_start(setting), form="gram")
        sigma = torch.linalg.svdvals(matrix)
        return {
            "estimate": found.sigma.item(),
            "sigma1": sigma[0].item(),
            "sigma2": sigma[1].item(),
        }

    @staticmethod
    def picture(setting: Setting) -> Iterator[str]:
        """Draw the plane, and the history of the estimate."""
        matrix, u, steps = _matrix(setting), _start(setting), int(setting["steps"])
        iterates = [u] + [
            power_iteration(matrix, r, init=u, form="gram").v for r in range(1, steps + 1)
        ]
        _, sigma, Vh = torch.linalg.svd(matrix)
        last = math.degrees(math.atan2(*iterates[-1].flip(0).tolist()))
        yield (
            f'<g transform="scale(1,-1)">{_AXES}<circle class="circle" r="1"/>{_ellipse(matrix)}'
            f'<path class="target" data-shape="target" d="{_segment(-1.6 * Vh[0], 1.6 * Vh[0])}"/>'
            f'<path class="trail" data-shape="trail" d="{_dots(iterates, 0.07)}"/>'
            f'<path class="first turns" data-shape="now" style="transform: rotate({last:.4g}deg)"'
            f' d="M0 0H1M.85 .1L1 0L.85-.1"/>{_handle("start", u)}</g>{_name("start", "start", u)}'
        )
        heights = [(matrix @ x).norm() / sigma[0] for x in iterates]
        history = [torch.tensor([30 + 22 * k, 290 - 230 * h]) for k, h in enumerate(heights)]
        second = 290 - 230 * (sigma[1] / sigma[0]).item()
        yield (
            '<path class="axes" d="M20 290H306"/><path class="first" d="M20 60H306"/>'
            f'<path class="second" data-shape="floor" d="M20 {second:.4g}H306"/>'
            '<text x="24" y="50">σ₁</text>'
            f'<text data-shape="floor-name" x="282" y="{second - 8:.4g}">σ₂</text>'
            f'<path class="trail" data-shape="history" d="{_dots(history, 5)}"/>'
            '<text class="axis-name" x="163" y="312">iterations</text>'
        )

    @staticmethod
    def inputs(setting: Setting) -> str:
        """Return the fields of the matrix, the start and the number of iterations."""
        trap = {"a": 2, "b": -1, "c": -1, "d": 2, "angle": 45, "steps": 12}
        return (
            _matrix_fields(setting)
            + _slider("angle", "Start, degrees", -180, 180, 1, setting)
            + _slider("steps", "Iterations", 0, 12, 1, setting)
            + '<p><button type="button" data-add="steps">One more</button>'
            f" {_button('Start from all ones', {'angle': 45})} {_button('The trap', trap)}"
            f" {_button('Reset', setting)}</p>"
        )


class TwoPoints:
    """A critic of one slope between two point masses, and the loss that chooses the slope."""

    label = "The critic between the two points, and the loss of each slope with its minima"
    numbers = {  # noqa: RUF012
        "slope": "lowest loss at slope",
        "wrong": "second minimum at",
        "end": "your critic ends at",
        "estimate": "its estimate",
    }
    settings = tuple(
        dict(zip(("distance", "strength", "start"), numbers, strict=True))
        for numbers in (
            (4, 10, -0.5),
            (4, 10, 2),
            (8, 2, -2),
            (6, 4, -1),
            (1, 1, -2.5),
            (8, 20, 0.5),
        )
    )

    @staticmethod
    def values(setting: Setting) -> dict[str, float | None]:
        """Descend on lipbook's own loss, from 1, from -1 and from the reader's start."""
        places = (1.0, -1.0, setting["start"])
        right, left, end = (_descend(setting["distance"], setting["strength"], s) for s in places)
        return {
            "slope": right,
            "wrong": left if left < 0 else None,
            "end": end,
            "estimate": end * setting["distance"],
        }

    @classmethod
    def picture(cls, setting: Setting) -> Iterator[str]:
        """Draw the critic, and the loss against its slope."""
        values, distance, strength = cls.values(setting), setting["distance"], setting["strength"]
        end = torch.tensor([1.0, values["end"]]) * distance
        yield (
            '<g transform="scale(1,-1)"><path class="axes" d="M-1.2 0H11M0-5V7"/>'
            '<path class="target" d="M-7-7L11 11"/>'
            f'<path class="first" data-shape="critic" d="{_segment(-end, 2 * end)}"/>'
            f'<circle class="point" r=".22"/>{_handle("real", torch.tensor([distance, 0]), 0.3)}'
            '</g><text x="-1" y="1.2">fake</text>'
            f'<text data-shape="real-name" x="{distance:.4g}" y="1.2">real</text>'
            '<text class="axis-name" x="5" y="-6.2">slope 1</text>'
        )
        scale = _Scale(distance, strength, values["slope"])
        minima = [s for s in (values["slope"], values["wrong"]) if s is not None]
        ball = scale.dots([values["end"]], 7)
        yield (
            f'<path class="axes" data-shape="zero" d="{scale.zero()}"/>'
            f'<path class="second" data-shape="one-sided" d="{scale.curve(one_sided=True)}"/>'
            f'<path class="first" data-shape="two-sided" d="{scale.curve(one_sided=False)}"/>'
            f'<path class="trail" data-shape="minima" d="{scale.dots(minima, 5)}"/>'
            f'<path class="ball" data-shape="ball" d="{ball}"/>'
            '<text class="axis-name" x="163" y="312">slope</text>'
            '<text x="8" y="16">loss</text>'
        )

    @staticmethod
    def inputs(setting: Setting) -> str:
        """Return the sliders of distance, strength and start."""
        wrong, none = {"distance": 4, "strength": 10, "start": -0.5}, {"strength": 2}
        return (
            _slider("distance", f"Distance {_W}", 0.5, 8, 0.1, setting)
            + _slider("strength", "Strength λ", 0.5, 20, 0.1, setting)
            + _slider("start", "Your critic starts at slope", -2.5, 2.5, 0.1, setting)
            + f"<p>{_button('Start on the wrong side', wrong)}"
            f" {_button('Weaken the penalty', none)} {_button('Reset', setting)}</p>"
        )


class _Scale:
    """Where a slope and its loss stand in the second picture of `TwoPoints`."""

    def __init__(self, distance: float, strength: float, slope: float) -> None:
        self.distance, self.strength = distance, strength
        self.left, self.right = -2.5, max(2.5, slope + 1)
        self.low = self.loss(slope)
        self.high = max(self.loss(-2.5), self.loss(0))

    def loss(self, s: float, one_sided: bool = False) -> float:
        excess = max(abs(s) - 1, 0) if one_sided else abs(s) - 1
        return -s * self.distance + self.strength * excess**2

    def point(self, s: float, one_sided: bool = False) -> Tensor:
        x = 10 + 300 * (s - self.left) / (self.right - self.left)
        y = 285 - 245 * (self.loss(s, one_sided) - self.low) / (self.high - self.low)
        return torch.tensor([x, y])

    def curve(self, one_sided: bool) -> str:
        slopes = torch.linspace(self.left, self.right, 121).tolist()
        return "M" + "L".join(_pair(self.point(s, one_sided)) for s in slopes)

    def dots(self, slopes: list[float], radius: float) -> str:
        return _dots([self.point(s) for s in slopes], radius)

    def zero(self) -> str:
        return f"M{self.point(0.0)[0].item():.4g} 20V290M10 290H310"


KINDS: dict[str, Any] = {"ellipse": Ellipse, "iteration": Iteration, "two-points": TwoPoints}
_VIEWS = {
    "ellipse": ("-3.3 -3.3 6.6 6.6",),
    "iteration": ("-3.3 -3.3 6.6 6.6", "0 0 320 320"),
    "two-points": ("-1.2 -7 12 12", "0 0 320 320"),
}


def figure(kind: str) -> str:
    """Return everything of a thing to touch that stands above its caption."""
    thing = KINDS[kind]
    first = thing.settings[0]
    expected = [{"set": s, "shown": thing.values(s)} for s in thing.settings]
    pictures = "".join(
        f'<svg viewBox="{view}">{drawn}</svg>'
        for view, drawn in zip(_VIEWS[kind], thing.picture(first), strict=True)
    )
    numbers = "".join(
        f'<div><dt>{label}</dt><dd><data data-number="{name}" value="{_exact(value)}">'
        f"{_short(value)}</data></dd></div>"
        for (name, label), value in zip(
            thing.numbers.items(), expected[0]["shown"].values(), strict=True
        )
    )
    return (
        f'<div class="touch-pictures" role="img" aria-label="{thing.label}">{pictures}</div>'
        f'<form class="touch-inputs" hidden>{thing.inputs(first)}</form>'
        f'<dl class="touch-numbers">{numbers}</dl><p class="touch-says" role="status"></p>'
        f'<script type="application/json" class="touch-expected">{json.dumps(expected)}</script>'
    )


class Touch(SphinxDirective):
    """Put one of the things to touch on the page, with the content as its caption."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the figure: HTML around a caption that MyST reads."""
        kind = self.arguments[0]
        if kind not in KINDS:
            raise self.error(f"no thing to touch named {kind!r}; there are {', '.join(KINDS)}")
        self.assert_has_content()
        opening = f'<figure class="touch" id="touch-{kind}" data-touch="{kind}">{figure(kind)}'
        caption = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, caption)
        return [_raw(f"{opening}<figcaption>"), *caption.children, _raw("</figcaption></figure>")]


def _raw(markup: str) -> nodes.raw:
    return nodes.raw("", markup, format="html")


def _matrix(setting: Setting) -> Tensor:
    return torch.tensor([setting[name] for name in _ENTRIES], dtype=torch.float64).reshape(2, 2)


def _start(setting: Setting) -> Tensor:
    angle = torch.tensor(math.radians(setting["angle"]), dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()])


@functools.cache
def _descend(distance: float, strength: float, slope: float) -> float:
    """Return the slope at which gradient descent on (19) ends, for a critic that is a line."""
    critic = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(critic.weight, slope)
    fake = torch.zeros(1, 1, dtype=torch.float64)
    real = fake + distance
    for _ in range(40):
        penalty = strength * gradient_penalty(critic, real, fake, epsilon=0.5)
        loss = critic_loss(critic(real), critic(fake)) + penalty
        (gradient,) = torch.autograd.grad(loss, critic.weight)
        with torch.no_grad():
            critic.weight -= 0.4 / strength * gradient
    return critic.weight.item()


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}".replace("-", "−")


def _pair(point: Tensor) -> str:
    return " ".join(f"{c:.4g}" for c in point.tolist())


def _segment(start: Tensor, end: Tensor) -> str:
    return f"M{_pair(start)}L{_pair(end)}"


def _dots(points: list[Tensor], radius: float) -> str:
    """Return a path that draws a disk at each point."""
    arc = f"a{radius} {radius} 0 1 0"
    moves = (f"M{_pair(p)}m{-radius} 0{arc} {2 * radius} 0{arc} {-2 * radius} 0" for p in points)
    return "".join(moves)


def _ellipse(matrix: Tensor) -> str:
    columns = " ".join(f"{entry:g}" for entry in matrix.T.flatten().tolist())
    return f'<circle class="ellipse" data-shape="ellipse" r="1" transform="matrix({columns} 0 0)"/>'


def _handle(name: str, place: Tensor, radius: float = 0.14) -> str:
    """Return what a mouse, or a broader finger, can drag; the inputs do the same by keyboard."""
    x, y = place.tolist()
    circle = f'data-shape="{name}" cx="{x:.4g}" cy="{y:.4g}"'
    return (
        f'<circle class="handle" {circle} r="{radius}"/>'
        f'<circle class="grip" {circle} r="{3 * radius:.4g}" data-drag="{name}"/>'
    )


def _name(shape: str, words: str, place: Tensor) -> str:
    x, y = place.tolist()
    return f'<text data-shape="{shape}-name" x="{x + 0.2:.4g}" y="{-y - 0.2:.4g}">{words}</text>'


def _matrix_fields(setting: Setting) -> str:
    cells = "".join(
        f'<input type="number" name="{name}" value="{setting[name]:g}" min="-3" max="3" step="0.1"'
        f' required aria-label="W, row {k // 2 + 1}, column {k % 2 + 1}">'
        for k, name in enumerate(_ENTRIES)
    )
    return f"<fieldset><legend>{_W}</legend><div>{cells}</div></fieldset>"


def _slider(name: str, label: str, low: float, high: float, step: float, setting: Setting) -> str:
    return (
        f'<label>{label} <span data-shown="{name}">{setting[name]:g}</span>'
        f'<input type="range" name="{name}" min="{low}" max="{high}" step="{step}"'
        f' value="{setting[name]:g}"></label>'
    )


def _button(words: str, setting: Setting) -> str:
    return f"<button type=\"button\" data-set='{json.dumps(setting)}'>{words}</button>"


def _add_script(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    raws = doctree.findall(nodes.raw) if doctree else ()
    if any("data-touch" in raw.astext() for raw in raws):
        app.add_js_file("touch.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("touch", Touch)
    app.add_css_file("touch.css")
    app.connect("html-page-context", _add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
