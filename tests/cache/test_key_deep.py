"""Keys of a million requests."""

from proxy.cache.key import encode_call
from proxy.cache.vault_keys import Partition, VaultKeys
from proxy.wire.call import Call

ASKED = {"model": "m", "input": "Hi", "prompt_cache_key": "k"}


def test_no_two_different_requests_share_a_key():
    """A million that differ in one place only: a text, a number, a name, a level, a header, a parameter or a team."""
    keys, seen = VaultKeys(b""), set()
    for number in range(1_000_000 // 8):
        text = str(number)
        for body, team, query, headers in (
            (ASKED | {"input": text}, "t", "", {}),
            (ASKED | {"input": number}, "t", "", {}),
            (ASKED | {text: "Hi"}, "t", "", {}),
            (ASKED | {"input": [text]}, "t", "", {}),
            (ASKED | {"input": {"": text}}, "t", "", {}),
            (ASKED, text, "", {}),
            (ASKED, "t", text, {}),
            (ASKED, "t", "", {"openai-beta": text}),
        ):
            seen.add(
                bytes.fromhex(keys.key_of(encode_call(Call(body, {}, query), "r", headers), Partition("team", team)))
            )

    assert len(seen) == 1_000_000
