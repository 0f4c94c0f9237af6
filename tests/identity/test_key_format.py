"""What an issued key looks like."""

import random

from proxy.identity.directory import KEY
from proxy.identity.key_format import DIGITS, KEY_CHARS, has_valid_checksum, make_key


def test_a_key_is_long_enough_and_never_the_same():
    """43 digits of base 62 are 256 bits; every key can be sent as a bearer token."""
    keys = [make_key() for _ in range(1000)]

    assert len(set(keys)) == 1000
    assert {len(key) for key in keys} == {KEY_CHARS}
    assert all(KEY.fullmatch(key) and key.startswith("hg_") and has_valid_checksum(key) for key in keys)
    assert set("".join(keys)) == {*DIGITS, "_"}


def test_a_mistyped_key_is_recognized():
    """One wrong character, two that are exchanged, one too many or too few, or another prefix."""
    chance = random.Random(1)
    for _ in range(1000):
        key = make_key()
        place = chance.randrange(3, KEY_CHARS - 1)
        other = chance.choice(DIGITS.replace(key[place], ""))
        wrong = [key[:place] + other + key[place + 1 :], key[:place] + key[place + 1 :], key + "0", f"sk_{key[3:]}", ""]
        if key[place] != key[place + 1]:
            wrong.append(key[:place] + key[place + 1] + key[place] + key[place + 2 :])

        assert not any(map(has_valid_checksum, wrong))
