"""A reload of several workers: each prepares what the new config needs, and when all have, each serves it.

If one cannot, none changes. A worker that is started later gets the text of the config that is served, not the file.
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
        self.lock = asyncio.Lock()
        """Held while a reload runs, and while a process is started."""
        self.texts: ConfigTexts | None = None
        """None for a config that is in no file."""
        self._source = config.source
        self._questions = questions
        if config.source is not None:
            text = config.source.content.decode()
            self.texts = ConfigTexts(text, text)

    async def reload(self, links: Callable[[], Links]) -> Report:
        """Return a status, and the changes or why nothing has changed."""
        async with self.lock:
            found = links()
            try:
                source, texts = await self._read()
            except ConfigError as error:
                await self._ask(found, DISCARD, str(error), COMMIT_S)
                return _fault(str(error))
            reports = await self._ask(found, PREPARE, texts.served, PREPARE_S)
            prepared = {number: found[number] for number, (status, _) in reports.items() if status == 200}
            fault = next(_faults(found, reports, links()), None)
            if fault is not None:
                await self._ask(prepared, DISCARD, f"nothing has changed: {fault}", COMMIT_S)
                return _fault(fault)
            if not prepared:
                return await self._serve_later(source, texts)
            self.texts = texts
            await self._ask(prepared, COMMIT, None, COMMIT_S)
            return 200, reports[min(prepared)][1]

    async def _read(self) -> tuple[SourceFile, ConfigTexts]:
        """Return the file as it is now: all workers get the same. Raises ConfigError."""
        if self._source is None or self.texts is None:
            raise ConfigError("The gateway is served without a config file.")
        source = await asyncio.to_thread(SourceFile.read, self._source.path)
        await asyncio.to_thread(source.tables)
        return source, ConfigTexts(self.texts.first, source.content.decode())

    async def _serve_later(self, source: SourceFile, texts: ConfigTexts) -> Report:
        """Let the workers that are started next serve a config, where none serves now."""
        before = self.texts.served if self.texts is not None else ""
        try:
            config = await asyncio.to_thread(read, source.path, None, texts.served, texts.first)
        except ConfigError as error:
            return _fault(str(error))
        self.texts = texts
        return 200, {"changes": differences(SourceFile(source.path, before.encode()).tables(), config.tables)}

    async def _ask(self, links: Links, word: str, argument: Any, timeout_s: float) -> dict[int, Any]:
        """Return the answers of the workers that answer, by their numbers."""

        async def ask(number: int, link: Link) -> tuple[int, list[Any]]:
            return number, await self._questions.ask([link], word, argument, timeout_s)

        answers = await asyncio.gather(*(ask(number, link) for number, (link, _) in links.items()))
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


def _fault(message: str) -> Report:
    return 422, {"error": {"message": message}}
