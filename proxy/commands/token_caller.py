"""The caller that a token in a file names, for `headgate policy test --token`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from proxy.config.validation import ConfigError
from proxy.context import Caller
from proxy.identity.issuer_table import IssuerTable
from proxy.identity.tokens import check_audience, read_token
from proxy.wire.errors import Unauthenticated
from proxy.wire.loggable import in_ascii


def caller_of_token(file: Path, issuers: Sequence[IssuerTable]) -> Caller:
    """Return the caller that the token in a file names. Raises ConfigError if it would not be accepted."""
    try:
        token = file.read_text(encoding="ascii").strip()
        unchecked = read_token(token)
        issuer = next((each for each in issuers if each.url == unchecked.issuer), None)
        if issuer is None:
            raise ConfigError(f"{file}: no [[issuer]] of --config has the url '{in_ascii(unchecked.issuer)}'")
        check_audience(unchecked.claims, issuer.audiences)
        caller = issuer.claim_map().caller_of(unchecked.claims)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: this is no token") from error
    except Unauthenticated as error:
        raise ConfigError(f"{file}: {error.message}") from error
    print(f"token of {issuer.name}: caller {caller.name}, team {caller.team}{', ' * bool(caller.tags)}{caller.tags}",
          file=sys.stderr)  # fmt: skip
    return caller
