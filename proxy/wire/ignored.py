"""The header that names the ignored parts of a request: `x-headgate-ignored: seed, tools[0].web_search`."""

import re
from collections.abc import Iterable

# Some clients reject long headers.
MAX_NAMES, MAX_NAME_CHARS = 32, 64


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    """Return the header with these names, each once, in characters that a header may contain; none without names."""
    shortened = [name[:MAX_NAME_CHARS] for name in dict.fromkeys(names)][:MAX_NAMES]
    ascii_names = [name.encode("ascii", "backslashreplace").decode() for name in shortened]
    printable = [re.sub(r"[^!-+\--~]", "_", name) for name in ascii_names]
    return {"x-headgate-ignored": ", ".join(printable)} if printable else {}
