"""Encodes commands for Redis.

Source: https://redis.io/docs/latest/develop/reference/protocol-spec/#sending-commands-to-a-redis-server
"""

from collections.abc import Sequence


def encode_command(*parts: bytes) -> bytes:
    """Return an encoded command, each part with its length before it."""
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))


def encode_sets(keys: Sequence[str], values: Sequence[bytes], ttl_ms: int) -> bytes:
    """Return the commands that set each key to its value for a time."""
    ttl = b"%d" % ttl_ms
    end = b"$2\r\nPX\r\n$%d\r\n%b\r\n" % (len(ttl), ttl)
    names = map(str.encode, keys)
    return b"".join(
        [
            b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % (len(name), name, len(value), value, end)
            for name, value in zip(names, values, strict=True)
        ]
    )


def encode_new(keys: Sequence[str], value: bytes, ttl_ms: int) -> bytes:
    """Return the commands that set each key that is free to one value for a time."""
    ttl = b"%d" % ttl_ms
    end = b"$%d\r\n%b\r\n$2\r\nPX\r\n$%d\r\n%b\r\n$2\r\nNX\r\n" % (len(value), value, len(ttl), ttl)
    names = map(str.encode, keys)
    return b"".join([b"*6\r\n$3\r\nSET\r\n$%d\r\n%b\r\n%b" % (len(name), name, end) for name in names])


def encode_field_gets(names: Sequence[bytes], field: bytes) -> bytes:
    """Return the commands that read one field of several hashes."""
    end = b"$%d\r\n%b\r\n" % (len(field), field)
    return b"".join([b"*3\r\n$4\r\nHGET\r\n$%d\r\n%b\r\n%b" % (len(name), name, end) for name in names])


def encode_gets(keys: Sequence[str]) -> bytes:
    """Return the commands that read values. MGET would hide that a key holds another kind."""
    return b"".join([b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name) for name in map(str.encode, keys)])
