"""Bounds the metadata that callers attach to a response, before an upstream refuses it or a log fills with it.

Request: refuses with `too_many_pairs`, `key_too_long`, `value_too_long`, `value_not_a_string`, `required`, and with
    `not_an_object` when it is something else than an object. Lengths count characters.
Response: passes.
Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-metadata
"""

from collections.abc import Mapping

from pydantic import NonNegativeInt

from policies import Policy
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation


class MetadataLimits(Policy):
    max_pairs: NonNegativeInt = 16
    """How many pairs a call may carry."""
    max_key_chars: NonNegativeInt = 64
    """How long a key may be, in characters."""
    max_value_chars: NonNegativeInt = 512
    """How long a value may be, in characters."""
    required: tuple[str, ...] = ()
    """Keys that every call must carry."""

    async def on_request(self, call: Call) -> Call:
        metadata = call.body.get("metadata")
        if metadata is None:
            metadata = {}
        if not isinstance(metadata, dict):
            raise PolicyViolation("not_an_object", "metadata is not an object of string pairs.", param="metadata")
        self._check_size(metadata)
        for key in self.required:
            if key not in metadata:
                raise PolicyViolation("required", f"metadata lacks the required key '{key}'.", param="metadata")
        return call

    def _check_size(self, metadata: Mapping[str, object]) -> None:
        if len(metadata) > self.max_pairs:
            found = f"metadata has {len(metadata)} pairs; the limit is {self.max_pairs}."
            raise PolicyViolation("too_many_pairs", found, param="metadata")
        for key, value in metadata.items():
            if len(key) > self.max_key_chars:
                found = f"a key of metadata has {len(key)} characters; the limit is {self.max_key_chars}."
                raise PolicyViolation("key_too_long", found, param="metadata")
            param = f"metadata.{key}"
            if not isinstance(value, str):
                raise PolicyViolation("value_not_a_string", f"{param} is not a string.", param=param)
            if len(value) > self.max_value_chars:
                found = f"{param} has {len(value)} characters; the limit is {self.max_value_chars}."
                raise PolicyViolation("value_too_long", found, param=param)
