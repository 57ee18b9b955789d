"""Chapter 6's study of SP5 on digits, with the hinge loss and one critic step.

- **Compared**: normalization by one step of power iteration from the last vectors, the two-sided
  and the one-sided penalty on digits of 28×28, with the hinge loss and one critic step.
- **Tuned**: three rounds. Fifteen settings a method (three strengths × five pairs of step sizes),
  four seeds, 150 steps; the best three again, 900 steps; where the best lies at an edge, its
  neighbours beyond, 900 steps. The best of the last two rounds is tested.
- **Criteria**: one, committed before the table, that asks for the opposite of the claim.
- **Seeds**: ten, 3,000 steps each.
- **Not done**: R1 was searched, where it came nearest of all (8.8 after 900 steps, the others 9.2
  to 9.8), and not tested, for want of time; each tested method's critic step was still the largest
  tried, after a search beyond the first edge.

This is a block of `rivals` that was not reached there, small enough for a laptop: networks of half
the width, batches of 32, and 3,000 steps where 6,000 were planned. "Fewer steps" means, as there:
seed by seed, the logarithm of the ratio of the steps to 1.25 times the larger of the two methods'
mean last distances.

Cost, from forty cycles on one core: 0.04 s a cycle divided, 0.05 to 0.06 s with a penalty. Three
methods × (60 probes × 150 cycles, 12 to 28 runs × 900, 10 tests × 3,000) are 150,000 to 195,000
cycles: 2.0 to 2.7 core-hours. R1, which no criterion names, comes last, if there is time.
"""

from __future__ import annotations

from studies._search import Block, Search, probes

#: Loss and critic steps.
BLOCKS: tuple[Block, ...] = (("hinge", 1),)
#: Generator steps of a run, by the critic steps for each and by its part.
STEPS = {1: {"probe": 150, "tuning": 900, "wider": 900, "test": 3000}}
SEARCH = Search("mnist", 16, 64, 32, BLOCKS, STEPS, tuple(range(10)))

#: How far the logarithm of a distance may be off on another machine, in the row of `beginning`.
TOLERANCE = {"log distance": 0.35}

#: The claims whose criteria it is measured under.
CLAIMS = ("SP5",)
#: The grids that chapter 6 shows, by what their cells hold, and the step.
PICTURES = (({"part": "test", "seed": 0}, STEPS[1]["test"]),)


#: What `studies` asks of each.
cells, watch, measure = SEARCH.cells, SEARCH.watch, SEARCH.measure
#: The cells whose beginning is repeated, for `workflow.study.recheck`.
repeatable, beginning = probes, SEARCH.beginning
