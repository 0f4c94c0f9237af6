"""A reload of several workers: each prepares what the new config needs, and when all have, each serves it.

If one cannot, none changes. A worker that is started meanwhile has the config that is still served, and prepares too;
one that is started later gets the text of the new one, not the file.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from proxy.config.build import Config, read
from proxy.config.difference import differences
from proxy.config.source_file import SourceFile
from proxy.config.validation import ConfigError
from proxy.control import COMMIT, DISCARD, PREPARE, ConfigTexts, Link, Questions
from proxy.http.health import Report

PREPARE_S = 300.0
"""How long a worker may take to prepare, in seconds: local models are loaded meanwhile."""
COMMIT_S = 20.0
"""How long a worker may take to serve what it has prepared, in seconds; one that takes longer hangs."""

Links = Mapping[int, tuple[Link, bool]]
"""The connections of worker processes by the numbers of their places, and whether each serves."""


class JointReload:
    """Lets all workers read the config again."""

    def __init__(self, config: Config, questions: Questions) -> None:
        self.starting = asyncio.Lock()
        """Held while a process is started with the texts, and while they change, but not while workers prepare: one
        that ends then is replaced."""
        self._reloading = asyncio.Lock()
        self.texts: ConfigTexts | None = None
        """None for a config that is in no file."""
        self._source = config.source
        self._questions = questions
        if config.source is not None:
            text = config.source.content.decode()
            self.texts = ConfigTexts(text, text)

    async def reload(self, links: Callable[[], Links]) -> Report:
        """Return a status, and the changes or why nothing has changed."""
        async with self._reloading:
            prepared: dict[int, Link] = {}
            try:
                source, texts = await self._read()
            except ConfigError as error:
                await self._ask(_each(links()), DISCARD, str(error), COMMIT_S)
                return _fault(error)
            try:
                report = await self._prepare(source, texts, links, prepared)
            except ConfigError as error:
                await self._ask(_running(prepared, links()), DISCARD, f"nothing has changed: {error}", COMMIT_S)
                return _fault(error)
            await self._ask(_running(prepared, links()), COMMIT, None, COMMIT_S)
            return 200, report

    async def _prepare(
        self, source: SourceFile, texts: ConfigTexts, links: Callable[[], Links], prepared: dict[int, Link]
    ) -> Any:
        """Let all workers prepare; then processes are started with the new texts. Return the changes.

        `prepared` gets the workers that have prepared. Raises ConfigError if one cannot.
        """
        report: Any = None
        while True:
            async with self.starting:
                found = links()
                left = {number: pair for number, pair in found.items() if prepared.get(number) is not pair[0]}
                if not left:
                    report = report if prepared else await self._check(source, texts)
                    self.texts = texts
                    return report
            reports = await self._ask(_each(left), PREPARE, texts.served, PREPARE_S)
            for number, (status, answer) in reports.items():
                if status == 200:
                    prepared[number], report = left[number][0], answer
            if fault := next(_faults(left, reports, links()), None):
                raise ConfigError(fault)

    async def _read(self) -> tuple[SourceFile, ConfigTexts]:
        """Return the current file, the same for all workers. Raises ConfigError."""
        if self._source is None or self.texts is None:
            raise ConfigError("The gateway is served without a config file.")
        source = await asyncio.to_thread(SourceFile.read, self._source.path)
        await asyncio.to_thread(source.tables)
        return source, ConfigTexts(self.texts.first, source.content.decode())

    async def _check(self, source: SourceFile, texts: ConfigTexts) -> Any:
        """Return the changes of a config that no worker has prepared, because none runs. Raises ConfigError."""
        before = self.texts.served if self.texts is not None else ""
        config = await asyncio.to_thread(read, source.path, None, texts.served, texts.first)
        return {"changes": differences(SourceFile(source.path, before.encode()).tables(), config.tables)}

    async def _ask(self, links: Mapping[int, Link], word: str, argument: Any, timeout_s: float) -> dict[int, Any]:
        """Return the answers of the workers that answer, by their numbers."""

        async def ask(number: int, link: Link) -> tuple[int, list[Any]]:
            return number, await self._questions.ask([link], word, argument, timeout_s)

        answers = await asyncio.gather(*(ask(number, link) for number, link in links.items()))
        return {number: answer[0] for number, answer in answers if answer}


def _faults(links: Links, reports: Mapping[int, Report], links_now: Links) -> Iterator[str]:
    """Yield why workers cannot serve a config. One that ended before it served is started again, with the new one."""
    for number, (link, serves) in links.items():
        if number not in reports:
            has_ended = number not in links_now or links_now[number][0] is not link
            if serves or not has_ended:
                yield f"worker {number} {'ended' if has_ended else 'did not answer'}; no worker has changed"
        elif reports[number][0] != 200:
            error: Any = reports[number][1]["error"]
            yield f"{error['message']} (worker {number})"


def _each(links: Links) -> dict[int, Link]:
    """Return the connections alone."""
    return {number: link for number, (link, _) in links.items()}


def _running(prepared: Mapping[int, Link], links: Links) -> dict[int, Link]:
    """Return the connections of the workers that have not ended since: an ended one answers nothing."""
    running = _each(links)
    return {number: link for number, link in prepared.items() if running.get(number) is link}


def _fault(error: ConfigError) -> Report:
    return 422, {"error": {"message": str(error)}}
