"""Text files inside a request."""

from base64 import b64encode

import pytest

from backends.local.request.input_files import read_input_file
from proxy.wire.errors import RequestError


def encoded(content: bytes) -> str:
    return b64encode(content).decode()


@pytest.mark.parametrize(
    "data",
    [
        encoded(b"Gr\xc3\xbc\xc3\x9fe"),
        encoded(b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe"),
        "data:text/plain;base64," + encoded("Grüße".encode()),
        "data:application/json;charset=utf-8;base64," + encoded("Grüße".encode()),
        "DATA:;BASE64," + encoded("Grüße".encode()),
    ],
)
def test_a_text_file_is_read(data):
    """As a data URL of any media type, or as base64 alone."""
    assert read_input_file({"filename": "a.md", "file_data": data}, "x") == "a.md:\nGrüße\n"


def test_a_file_may_lack_a_name():
    assert read_input_file({"file_data": encoded(b"a")}, "x") == "file:\na\n"


@pytest.mark.parametrize(
    ("part", "param", "message"),
    [
        ({"file_id": "file_1"}, "x.file_id", "send the file's text inline, as file_data"),
        ({"file_url": "https://a.example/b"}, "x.file_url", "send the file's text inline"),
        ({"filename": "a"}, "x.file_data", "Missing required parameter: 'x.file_data'."),
        ({"file_data": 1}, "x.file_data", "expected a string, but got an integer"),
        ({"file_data": "YQ==", "filename": 1}, "x.filename", "expected a string, but got an integer"),
        ({"file_data": "not base64!"}, "x.file_data", "its data must be base64"),
        ({"file_data": "data:text/plain,hello"}, "x.file_data", "its data must be base64"),
        ({"file_data": encoded(b"%PDF-1.7 \xff\xfe")}, "x.file_data", "the file is not UTF-8"),
        ({"file_data": encoded(b"PK\0\0")}, "x.file_data", "the file is binary"),
    ],
)
def test_a_file_that_is_not_inline_text_is_refused(part, param, message):
    with pytest.raises(RequestError, match=message) as refused:
        read_input_file(part, "x")

    assert param == refused.value.param
