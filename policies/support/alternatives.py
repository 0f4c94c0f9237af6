"""Top-level fields that the Responses protocol does not have, and that some upstream reads in place of one that it has.

A policy that checks the protocol's field refuses the alternatives, because nothing would have checked them.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from policies.support.walk import plain_name
from proxy.wire.errors import PolicyViolation
from proxy.wire.loggable import in_ascii
from proxy.wire.query import query_pairs

# Other models than `model`: a list of models to try (OpenRouter: `models`), models to try after an error (LiteLLM, by
# reason), `route`, which lets OpenRouter choose one, a preset that has one, and a list of deployments or the name of
# one (LiteLLM: `model_list`, `user_config`, `deployment_id`; the OpenAI API before `model`: `engine`).
# Source: https://openrouter.ai/docs/guides/routing/model-fallbacks, https://openrouter.ai/docs/guides/features/presets,
# https://docs.litellm.ai/docs/proxy/client_side_fallbacks, https://docs.litellm.ai/docs/completion/input
MODELS = (
    "models", "fallbacks", "context_window_fallbacks", "context_window_fallback_dict", "content_policy_fallbacks",
    "route", "preset", "model_list", "user_config", "deployment_id", "engine",
)  # fmt: skip
# Other lists of tools than `tools`: Chat Completions (`functions`, `function_call`, `web_search_options`), Assistants
# (`tool_resources`), OpenRouter (`plugins`), Anthropic (`mcp_servers`), Bedrock and Gemini (`tool_config`, toolConfig),
# Azure (`data_sources`), xAI (`search_parameters`).
# Source: https://platform.openai.com/docs/api-reference/chat/create, https://openrouter.ai/docs/guides/features/plugins,
# https://docs.anthropic.com/en/docs/agents-and-tools/mcp-connector, https://ai.google.dev/api/caching#ToolConfig,
# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html,
# https://learn.microsoft.com/en-us/azure/ai-foundry/openai/references/on-your-data,
# https://docs.x.ai/docs/guides/live-search
TOOLS = (
    "functions", "function_call", "web_search_options", "tool_resources", "plugins", "mcp_servers", "tool_config",
    "data_sources", "search_parameters",
)  # fmt: skip
# Other conversations than `input`: Chat Completions, Anthropic and Bedrock (`messages`, `system`), Gemini (`contents`,
# `system_instruction`), vLLM (`previous_input_messages`).
# Source: as above, and https://github.com/vllm-project/vllm (ResponsesRequest)
INPUT = ("messages", "system", "contents", "system_instruction", "previous_input_messages")
# Objects whose fields a gateway merges into the request that it sends on, so that they may be any field: LiteLLM and
# Bedrock (additionalModelRequestFields).
# Source: https://docs.litellm.ai/docs/completion/provider_specific_params, and as above
ANY = ("extra_body", "additional_model_request_fields")
# What no policy checks: the provider that answers (OpenRouter: `provider`), a change of the prompt on its way
# (`transforms`), and another server than the configured one (LiteLLM: `api_base`, `base_url`).
# Source: https://openrouter.ai/docs/guides/routing/provider-selection, .../features/message-transforms,
# https://docs.litellm.ai/docs/proxy/clientside_auth
ROUTING = ("provider", "transforms", "api_base", "base_url")


class AlternativesCheck(Protocol):
    def __call__(self, body: Mapping[str, object], query: str = "") -> None:
        """Raises PolicyViolation."""


def alternatives_check(*fields: Iterable[str]) -> AlternativesCheck:
    """Return a function that raises PolicyViolation for a body or a query with one of these fields, in any spelling.

    A field that is null is absent.
    """
    names = frozenset(plain_name(name) for group in (*fields, ANY) for name in group)

    def refuse(body: Mapping[str, object], query: str = "") -> None:
        if query:
            refuse_in_query(names, query)
        if names.isdisjoint(map(plain_name, body)):
            return
        for name, value in body.items():
            if value is not None and plain_name(name) in names:
                shown = short_name(name)
                found = f"The body has '{shown}', which some servers read; use the protocol's own fields."
                raise PolicyViolation("alternative_field", found, param=shown)

    return refuse


def refuse_in_query(names: frozenset[str], query: str) -> None:
    """Raises PolicyViolation for a query with one of these names, which are plain."""
    for name, _ in query_pairs(query):
        if plain_name(name) in names:
            found = f"The query has '{short_name(name)}', which some servers read; use the protocol's own fields."
            raise PolicyViolation("alternative_field", found, param=short_name(name))


def short_name(name: str) -> str:
    """Return the beginning of a name in ASCII, for a message."""
    return in_ascii(name, 48)[:48]
