"""The ids in forms of relayed requests."""

from collections.abc import AsyncIterator

import pytest

from proxy.state.relayed_forms import MAX_NAME_BYTES, MAX_PARTS, PART_BYTES, FormField, boundary_of, split_form
from proxy.wire.errors import RequestError

BOUNDARY = b"--cut"
ENDINGS = ("id", "ids", "file")
FILE = b'Content-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain'


def part(head: bytes, text: bytes, end: bytes = b"\r\n") -> bytes:
    return BOUNDARY + end + head + end + end + text + end


def field(name: bytes, text: bytes = b"file-1") -> bytes:
    return part(b"Content-Disposition: form-data; name=" + name, text)


async def in_chunks(form: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(form), size):
        yield form[start : start + size]


async def read(form: bytes, size: int = 1_000_000) -> tuple[bytes, list[FormField]]:
    """Return the bytes that passed, and the fields."""
    read = [each async for each in split_form(in_chunks(form, size), BOUNDARY)]
    return b"".join(data for data, _ in read), [found for _, found in read if found is not None]


@pytest.mark.parametrize("size", [1, 7, 1_000, 1_000_000])
async def test_fields_are_found_and_every_byte_passes(size: int):
    """However the form is cut into chunks."""
    form = (
        field(b'"purpose"', b"batch")
        + part(FILE, b"\r\n\r\nfile-9" * 3_000)
        + field(b'"file_id"')
        + BOUNDARY
        + b"--\r\n"
    )
    passed, fields = await read(form, size)

    assert passed == form
    assert fields == [FormField("purpose", "batch"), FormField("file_id", "file-1")]
    assert [each.holds_id(ENDINGS) for each in fields] == [False, True]


async def test_a_field_is_known_before_its_text_passes():
    """The caller of the generator can stop it there."""
    form = field(b'"file_id"') + part(FILE, b"a" * 2 * PART_BYTES)
    async for data, found in split_form(in_chunks(form, 1_000_000), BOUNDARY):
        assert b"file-1" not in data
        if found is not None:
            break

    assert found == FormField("file_id", "file-1")


@pytest.mark.parametrize(
    "form",
    [
        field(b"file_id"),
        field(b'"file_id[]"'),
        field(b'"files[0][id]"'),
        field(b'"fileId"'),
        field(b'"file\\_id"'),
        field(b"\"x\"; name*=utf-8''file%5Fid"),
        field(b'"file_id"; filename=""'),
        field(b'"file_id"; x="; filename=q"'),
        field(b'"file_id"', b" \t" * 1_000 + b"FILE-1" + b" " * PART_BYTES),
        part(b'content-disposition:form-data;\r\n name="file_id"', b"file-1"),
        part(b'Content-Disposition: form-data; name="file_id"', b"file-1", end=b"\n"),
        part(b"X-Other: name", b"file-1"),
        field(b'"%b"' % (b"a" * MAX_NAME_BYTES)),
        b"x" + field(b'"file_id"').replace(b"form-data;", b'form-data; x="--cut; filename=q";'),
    ],
)
async def test_no_spelling_hides_an_id(form: bytes):
    """Whatever an upstream may accept."""
    _, fields = await read(form + BOUNDARY + b"--\r\n")

    assert "file-1" in [each.text for each in fields if each.holds_id(ENDINGS)]


@pytest.mark.parametrize(
    "form",
    [
        field(b'"file_id"\r\nContent-Transfer-Encoding: base64', b"ZmlsZS0x"),
        field(b'"file_id"\r\nContent-Type: text/plain; charset="utf-16"', "file-1".encode("utf-16")),
        field(b'"file_id"', b" " * PART_BYTES + b"file-1"),
        part(b"X-Long: " + b"a" * PART_BYTES, b"file-1"),
        BOUNDARY * (MAX_PARTS + 1),
    ],
)
async def test_what_cannot_be_read_is_refused(form: bytes):
    """An upstream might read it."""
    with pytest.raises(RequestError):
        await read(form + BOUNDARY + b"--\r\n")


@pytest.mark.parametrize(
    "form",
    [
        field(b'"a"\r\nContent-Type: text/plain; charset=ISO-8859-1\r\nContent-Transfer-Encoding: 8bit'),
        field(b'"a"\r\nContent-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: binary'),
        b"",
        BOUNDARY + b"\r\nX: y",
    ],
)
async def test_what_clients_send_passes(form: bytes):
    """Also a form that is empty, or breaks off."""
    assert (await read(form))[0] == form


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=cut", b"--cut"),
        ('multipart/form-data; Boundary="a:b"; charset=utf-8', b"--a:b"),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=a; boundary=b", None),
        ('multipart/form-data; boundary="a\\"b"', None),
        ("multipart/form-data; boundary*=utf-8''cut", None),
    ],
)
def test_a_form_has_one_boundary(content_type: str, boundary: bytes | None):
    """Two readers find the same."""
    if boundary is not None:
        assert boundary_of(content_type) == boundary
        return
    with pytest.raises(RequestError):
        boundary_of(content_type)
