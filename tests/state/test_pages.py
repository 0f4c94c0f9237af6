"""Pages of a list, and what of a query is refused or has no effect."""

import pytest

from proxy.state.items import StoredItem
from proxy.state.pages import Page, list_object, read_page, unknown_parameters
from proxy.wire.errors import RequestError

ITEMS = [StoredItem(f"msg_{n}", {"type": "message", "role": "user", "content": str(n)}) for n in range(25)]


def ids(page: Page) -> list[str]:
    return [item["id"] for item in page.of(ITEMS)["data"]]


def test_a_page_has_the_newest_twenty_items_by_default():
    """The order is descending."""
    page = read_page("").of(ITEMS)

    assert [item["id"] for item in page["data"]] == [f"msg_{n}" for n in range(24, 4, -1)]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", "msg_24", "msg_5", True)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("limit=2&order=asc", ["msg_0", "msg_1"]),
        ("limit=2&order=asc&after=msg_1", ["msg_2", "msg_3"]),
        ("limit=3&after=msg_2", ["msg_1", "msg_0"]),
        ("after=msg_0", []),
        ("limit=1&order=&after=", ["msg_24"]),
    ],
)
def test_a_page_follows_the_query(query: str, expected: list[str]):
    """An empty value counts as missing."""
    assert ids(read_page(query)) == expected


def test_pages_one_after_the_other_have_every_item_once():
    """A client takes the last id of a page as the `after` of the next."""
    found: list[str] = []
    page = read_page("limit=10").of(ITEMS)
    found += [item["id"] for item in page["data"]]
    while page["has_more"]:
        page = read_page(f"limit=10&after={page['last_id']}").of(ITEMS)
        found += [item["id"] for item in page["data"]]

    assert found == [f"msg_{n}" for n in range(24, -1, -1)]


def test_an_empty_list_has_no_first_and_last_id():
    """And nothing follows."""
    expected = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}

    assert list_object([]) == expected


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=0", "integer_below_min_value", "limit"),
        ("limit=-5", "integer_below_min_value", "limit"),
        ("limit=101", "integer_above_max_value", "limit"),
        ("limit=ten", "invalid_type", "limit"),
        ("limit=1.5", "invalid_type", "limit"),
        ("limit=%C2%B2", "invalid_type", "limit"),
        ("limit=99999999999999999999", "integer_above_max_value", "limit"),
        ("limit=-99999999999999999999", "integer_below_min_value", "limit"),
        ("order=newest", "invalid_value", "order"),
    ],
)
def test_a_query_that_names_no_page_is_refused(query: str, code: str, param: str):
    """With the parameter and the code of OpenAI."""
    with pytest.raises(RequestError) as caught:
        read_page(query)

    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


def test_an_unknown_id_in_after_is_refused():
    """A client that pages through another list learns so."""
    with pytest.raises(RequestError, match="no item with id 'msg_99' found") as caught:
        ids(read_page("after=msg_99"))

    assert (caught.value.status, caught.value.param) == (400, "after")


def test_parameters_without_effect_are_found():
    """In all forms of arrays, each once."""
    query = "include%5B%5D=a&beta=true&limit=2&beta=1&&x=y"

    assert unknown_parameters(query, {"include", "limit"}) == ["beta", "x"]
