"""Top-level fields that the Responses protocol does not have, and that some upstream reads in place of one that it has.

A policy that checks the protocol's field refuses the alternatives, because nothing would have checked them.
"""

from collections.abc import Callable, Iterable, Mapping

from policies.support.walk import plain_name
from proxy.wire.errors import PolicyViolation

# Other models than `model`: a list of models to try (OpenRouter), models to try after an error (LiteLLM, by reason),
# `route` that lets OpenRouter choose one, an agent or preset that has a model of its own, and Azure's older names.
# Source: https://openrouter.ai/docs/guides/routing/model-fallbacks, https://openrouter.ai/docs/guides/features/presets,
# https://docs.litellm.ai/docs/proxy/client_side_fallbacks
MODELS = (
    "models", "fallbacks", "fallback_models", "context_window_fallbacks", "context_window_fallback_dict",
    "content_policy_fallbacks", "model_list", "route", "preset", "engine", "deployment", "deployment_id",
)  # fmt: skip
# Other lists of tools than `tools`: those of Chat Completions (`functions`, `web_search_options`), OpenRouter's
# plugins, Anthropic's connector (`mcp_servers`, `toolsets`), Gemini's and Bedrock's configuration, Azure's data
# sources, skills that bring scripts.
# Source: https://platform.openai.com/docs/api-reference/chat/create, https://openrouter.ai/docs/guides/features/plugins,
# https://docs.anthropic.com/en/docs/agents-and-tools/mcp-connector, https://ai.google.dev/api/caching#ToolConfig,
# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html,
# https://learn.microsoft.com/en-us/azure/ai-foundry/openai/references/on-your-data
TOOLS = (
    "functions", "function_call", "web_search_options", "plugins", "mcp_servers", "toolsets", "tool_config",
    "tool_resources", "data_sources", "skills",
)  # fmt: skip
# Other conversations than `input`: Chat Completions, Anthropic and Bedrock (`messages`, `system`), Gemini (`contents`,
# `system_instruction`), vLLM's earlier messages.
# Source: as above, and https://docs.vllm.ai/en/latest/api/vllm/entrypoints/openai/protocol.html (ResponsesRequest)
INPUT = (
    "messages", "contents", "system", "system_instruction", "previous_input_messages",
)  # fmt: skip
# Objects whose fields are merged into the request that a gateway sends on, so that they may be any field.
# Source: https://docs.litellm.ai/docs/completion/provider_specific_params,
# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html
ANY = ("extra_body", "additional_model_request_fields", "litellm_params")
# Choices that no policy checks: the provider that answers, by OpenRouter; changes of the prompt on its way.
# Source: https://openrouter.ai/docs/guides/routing/provider-selection, .../features/message-transforms
ROUTING = ("provider", "transforms")


def alternatives_check(*fields: Iterable[str]) -> Callable[[Mapping[str, object]], None]:
    """Return a function that raises PolicyViolation for a body with one of these fields, in any spelling.

    A field that is null is absent.
    """
    names = frozenset(plain_name(name) for group in (*fields, ANY) for name in group)

    def refuse(body: Mapping[str, object]) -> None:
        if names.isdisjoint(map(plain_name, body)):
            return
        for name, value in body.items():
            if value is not None and plain_name(name) in names:
                shown = printable(name)
                found = f"The body has '{shown}', which some servers read; use the protocol's own fields."
                raise PolicyViolation("alternative_field", found, param=shown)

    return refuse


def printable(name: str) -> str:
    """Return the beginning of a name in ASCII, for a message."""
    return name[:48].encode("ascii", "backslashreplace").decode()[:48]
