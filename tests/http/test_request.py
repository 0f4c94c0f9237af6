"""A request of the server has all that aiohttp's has."""

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from proxy.http.request import Request


def test_every_attribute_that_aiohttp_sets_is_there_when_it_is_asked_for_first():
    """Those that are no attributes of ours are made on demand."""
    names = vars(make_mocked_request("GET", "/")).keys() - vars(web.Request).keys()
    of_application = {"_match_info"}  # a request of a web.Application only

    assert names - of_application - vars(Request).keys() == set()
