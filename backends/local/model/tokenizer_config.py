"""tokenizer_config.json and special_tokens_map.json: the chat templates, and the special tokens by name.

A chat template is the file chat_template.jinja or a value in tokenizer_config.json: one string, or a list of names and
templates of which "tool_use" is for calls with tools and "default" for all others.
Source: https://huggingface.co/docs/transformers/chat_templating_writing#template-selection
"""

from pathlib import Path
from typing import Any

from backends.local.model.files import JSON, read_optional_object, read_text

TEMPLATE_FILE, CONFIG_FILE, MAP_FILE = "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_chat_templates(folder: Path) -> tuple[str, str]:
    """Return the template for calls without tools, and the one for calls with tools, often the same."""
    if (folder / TEMPLATE_FILE).is_file():
        source = read_text(folder / TEMPLATE_FILE)
        return source, source
    path = folder / CONFIG_FILE
    given = read_optional_object(path).get("chat_template")
    if given is None:
        raise FileNotFoundError(
            f"The model folder {folder} has no {TEMPLATE_FILE}, and {CONFIG_FILE} has no chat template."
        )
    if isinstance(given, str):
        return given, given
    named = _by_name(given)
    if named is None or "default" not in named:
        raise ValueError(f"{path}: chat_template is neither a template nor a list of templates with a default one.")
    return named["default"], named.get("tool_use", named["default"])


def read_special_tokens(folder: Path, engine_config: JSON) -> dict[str, str]:
    """Return the tokens that templates know by name; the engine's own config takes precedence."""
    sources = [engine_config, read_optional_object(folder / CONFIG_FILE), read_optional_object(folder / MAP_FILE)]
    found = {name: [_token_text(source.get(name)) for source in sources] for name in TOKEN_NAMES}
    return {name: next(filter(None, texts)) for name, texts in found.items() if any(texts)}


def _by_name(given: Any) -> dict[str, str] | None:
    if isinstance(given, list) and all(isinstance(each, dict) for each in given):
        given = {each.get("name"): each.get("template") for each in given}
    if isinstance(given, dict) and all(isinstance(part, str) for pair in given.items() for part in pair):
        return given
    return None


def _token_text(token: Any) -> str:
    """Return the text of a token, which is a string or an object that also says how it is tokenized."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""
