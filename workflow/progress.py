"""What a person sees of a run: a bar on a terminal, elsewhere one line a finished step."""

from __future__ import annotations

import logging
from typing import TextIO

from snakemake.logging import logger
from tqdm import tqdm


class Progress:
    """Listen to Snakemake's log.

    As a filter of its logger: Snakemake removes every handler that it did not set itself.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._names: dict[int, str] = {}
        self._failed: list[str] = []
        self._bar = tqdm(file=stream, unit="step", disable=None, leave=False)
        logger.addFilter(self)

    def close(self) -> None:
        """Stop listening."""
        self._bar.close()
        logger.removeFilter(self)

    def broken(self) -> str:
        """Return which steps broke off, or an empty text."""
        return f"{', '.join(self._failed)} broke off or was killed" if self._failed else ""

    def filter(self, record: logging.LogRecord) -> bool:
        """Note what an event says, and let it pass."""
        facts = vars(record)
        match facts.get("event"):
            case "job_info":
                words = (facts["rule_name"], *facts["wildcards"].values())
                self._names[facts["jobid"]] = " ".join(map(str, words))
            case "job_error":
                self._failed.append(self._names.get(facts["jobid"], "a step"))
            case "job_finished" if self._bar.disable:
                print(self._names[facts["job_id"]], file=self._stream, flush=True)
            case "progress":
                self._bar.total = facts["total"]
                self._bar.update(facts["done"] - self._bar.n)
        return True
