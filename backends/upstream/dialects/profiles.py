"""The known servers of the Responses protocol, by the name in `profile` of the config.

A profile is a set of keys of the config, and every key in the config itself has precedence. Fields are dropped only if
answers stay the same without them: what would change an answer is left to the server to refuse, in its own words.
`keeps_state` is set where all of it is known to be kept (responses, conversations, and what lists them); the gateway's
own state serves the others. The forms of their errors are no part of this: all are read, from every server
(`proxy/wire/foreign_errors.py`).
"""

from collections.abc import Mapping
from typing import Any, Literal

from backends.upstream.dialects.repairs import REPAIRS

ProfileName = Literal[
    "generic", "openai", "openai-2025", "azure", "vllm", "llamacpp", "ollama", "lmstudio", "nebius", "sudo",
    "openrouter",
]  # fmt: skip
FIRST_INCLUDES = ("file_search_call.results", "message.input_image.image_url", "computer_call_output.output.image_url")
"""The values of `include` in March 2025."""
INCLUDES = (
    *FIRST_INCLUDES, "code_interpreter_call.outputs", "message.output_text.logprobs", "reasoning.encrypted_content",
)  # fmt: skip
"""Those until the end of 2025."""
LATER_HINTS = ("prompt_cache_options", "prompt_cache_retention")
HINTS = ("prompt_cache_key", "safety_identifier", "service_tier", "stream_options", *LATER_HINTS)
"""Fields that change no answer: for whom it is, how it is paid, cached and padded."""

PROFILES: Mapping[ProfileName, Mapping[str, Any]] = {
    "generic": {},
    "openai": {"keeps_state": True, "enforces": ("max_tool_calls",)},
    # The API as it was published in March 2025; some servers still have no other. Its events have no numbers.
    "openai-2025": {
        "drop_fields": ("max_tool_calls", *HINTS), "includes": FIRST_INCLUDES, "repairs": REPAIRS,
    },
    # Source: https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle (/openai/v1, `api-key`)
    "azure": {
        "auth": "api-key", "path": "/openai/v1", "keeps_state": True, "enforces": ("max_tool_calls",),
        "provider": "azure.ai.openai",
    },
    # It sends `response.completed` for incomplete responses, and refuses values of `include` that it does not know.
    "vllm": {"provider": "vllm", "includes": INCLUDES, "repairs": REPAIRS},
    # The first events of its streams have few fields, some have no numbers.
    "llamacpp": {"provider": "llama.cpp", "repairs": REPAIRS},
    "ollama": {"provider": "ollama", "repairs": REPAIRS},
    "lmstudio": {"provider": "lmstudio", "repairs": REPAIRS},
    # Source: https://docs.tokenfactory.nebius.com/api-reference/inference/create-a-response
    "nebius": {
        "provider": "nebius", "includes": INCLUDES, "repairs": REPAIRS,
        "drop_fields": ("safety_identifier", "stream_options", *LATER_HINTS),
    },
    # Its integers begin at 0. Source: https://docs.sudoapp.dev/api-reference/responses-api/create-response
    "sudo": {
        "provider": "sudo", "minimums": {"max_output_tokens": 0, "max_tool_calls": 0}, "drop_fields": LATER_HINTS,
        "repairs": REPAIRS,
    },
    # It ends streams with `response.done`. Source: https://openrouter.ai/docs/api-reference/responses-api-beta
    "openrouter": {"path": "/api/v1", "provider": "openrouter", "repairs": REPAIRS},
}  # fmt: skip
