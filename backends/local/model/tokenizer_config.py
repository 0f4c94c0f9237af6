"""tokenizer_config.json and special_tokens_map.json: the chat templates and the special tokens by name.

A chat template is the file chat_template.jinja, or else stands in tokenizer_config.json: one as a string, several as
a list of names and templates, of which "tool_use" is for calls that bring tools and "default" for all others.
Source: https://huggingface.co/docs/transformers/chat_templating_writing#template-selection
"""

from pathlib import Path
from typing import Any

from backends.local.model.reading import JSON, object_if_there, text_in

TEMPLATE, CONFIG, MAP = "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def templates_in(folder: Path) -> tuple[str, str]:
    """The template for calls without tools, and the one for calls with tools, often the same."""
    if (folder / TEMPLATE).is_file():
        source = text_in(folder / TEMPLATE)
        return source, source
    path = folder / CONFIG
    given = object_if_there(path).get("chat_template")
    if given is None:
        raise FileNotFoundError(f"The model folder {folder} has no {TEMPLATE}, and {CONFIG} has no chat template.")
    if isinstance(given, str):
        return given, given
    named = _by_name(given)
    if named is None or "default" not in named:
        raise ValueError(f"{path}: chat_template is neither a template nor a list of them that names a default one.")
    return named["default"], named.get("tool_use", named["default"])


def special_tokens_in(folder: Path, engine: JSON) -> dict[str, str]:
    """The tokens that templates know by name; those that the engine's own config names stand above the others."""
    sources = [engine, object_if_there(folder / CONFIG), object_if_there(folder / MAP)]
    found = {name: [_content(source.get(name)) for source in sources] for name in NAMES}
    return {name: next(filter(None, contents)) for name, contents in found.items() if any(contents)}


def _by_name(given: Any) -> dict[str, str] | None:
    if isinstance(given, list) and all(isinstance(each, dict) for each in given):
        given = {each.get("name"): each.get("template") for each in given}
    if isinstance(given, dict) and all(isinstance(part, str) for pair in given.items() for part in pair):
        return given
    return None


def _content(token: Any) -> str:
    """A token is given as it is, or as an object that also says how it is cut."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""
