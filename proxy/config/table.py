"""What every table of the config file has in common."""

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """A TOML table. Its fields are its keys; an unknown key is an error, so that a misspelt one is not ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # a secret written in the wrong place must not appear in a traceback
    )
