"""A claim that is not the book's, for tests to vary."""

CRITERION = {
    "id": "size",
    "quantity": "size",
    "kind": "measured",
    "relation": "<",
    "bound": 1.0,
    "role": "decides",
}
ENTRY = {
    "id": "T1",
    "chapter": "01_tiny",
    "section": "Somewhere",
    "equations": [3],
    "kind": "theorem",
    "says": "Small things are small.",
    "scope": "Some things.",
    "criteria": [CRITERION],
    "verdict": "holds",
    "finding": "They are.",
}
FAILING = {"counterexample": "2 is not.", "corrected": "Some are.", "test": "tests/x.py::x"}
