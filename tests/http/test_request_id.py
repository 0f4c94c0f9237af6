"""The ids of requests."""

import re
from itertools import islice

from proxy.http.request_id import DRAWN_AT_ONCE, new_request_id, request_ids


def test_all_ids_are_different_and_of_one_form():
    """Also those whose bytes are drawn together, and those of two parts of the gateway."""
    ids = [*islice(request_ids(), 3 * DRAWN_AT_ONCE), *islice(request_ids(), 3 * DRAWN_AT_ONCE), new_request_id()]

    assert len({*ids}) == len(ids)
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", each) for each in ids)
