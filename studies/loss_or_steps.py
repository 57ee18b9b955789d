"""Chapter 6's study of SP5 on digits, with the Wasserstein loss and one critic step.

- **Compared**: normalization by one step of power iteration from the last vectors and the two-sided
  penalty on digits of 28×28, with the Wasserstein loss and one critic step.
- **Tuned**: as in `rivals_on_digits`, in three rounds. Fifteen settings a method (three strengths ×
  five pairs of step sizes), four seeds, 150 steps; the best three again, 900 steps; where the best
  lies at an edge, its neighbours beyond, 900 steps. The best of the last two rounds is tested.
- **Criteria**: committed before the table. It asks whether normalization takes more steps here, as
  it does with the same loss and five critic steps; if it did not, the schedule would be the cause.
- **Seeds**: ten, 3,000 steps each.
- **Not done**: the one-sided penalty and R1; the fourth corner, the hinge loss with five critic
  steps. Normalization's critic step is the smallest of the square (smaller ones did worse), the
  penalty's the largest that was tried.

With the Wasserstein loss and five critic steps (`rivals`), normalization takes more steps than the
penalty on these digits; with the hinge loss and one (`rivals_on_digits`), no difference is seen.
Two things were changed together. Here is one of the two corners between them, with the networks,
the batches, the search and the tests of `rivals_on_digits`.

Cost, from that study: three methods × (60 probes × 150 cycles, 12 to 28 runs × 900, 10 tests ×
3,000) are 150,000 to 195,000 cycles at 0.04 to 0.06 s: 2.0 to 2.7 core-hours. Two methods were
measured, beside other work, which made the cells slow.
"""

from __future__ import annotations

from dataclasses import replace

from studies import rivals_on_digits as neighbour
from studies._search import Block, probes

#: Loss and critic steps.
BLOCKS: tuple[Block, ...] = (("wasserstein", 1),)
SEARCH = replace(neighbour.SEARCH, blocks=BLOCKS)

#: How far the logarithm of a distance may be off on another machine, in the row of `beginning`.
TOLERANCE = {"log distance": 0.35}

#: The claims whose criteria it is measured under.
CLAIMS = ("SP5",)
#: The grids that chapter 6 shows, by what their cells hold, and the step.
PICTURES = neighbour.PICTURES


#: What `studies` asks of each.
cells, watch, measure = SEARCH.cells, SEARCH.watch, SEARCH.measure
#: The cells whose beginning is repeated, for `workflow.study.recheck`.
repeatable, beginning = probes, SEARCH.beginning
