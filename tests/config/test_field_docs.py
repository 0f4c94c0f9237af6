"""Descriptions of fields, read from the source when they are needed."""

from pydantic import create_model

from proxy.admin.api.openapi import describe
from proxy.admin.api.spend import ENDPOINTS
from proxy.config.field_docs import field_docs
from proxy.config.table import Table


class Parent(Table):
    """Not a field's."""

    kept: int = 1
    """Of the parent."""
    replaced: int = 1
    """Of the parent,
        on two lines."""


class Child(Parent):
    """Not a field's either."""

    replaced: int = 2
    """Of the child,
        indented."""
    undocumented: int = 3
    number: int = 4
    1  # noqa: B018  an expression, but no text

    def method(self) -> None:
        """Of a method."""

    """After a method."""


def test_a_field_has_the_docstring_below_it():
    """Or the parent's; a text elsewhere is none."""
    assert field_docs(Child) == {"kept": "Of the parent.", "replaced": "Of the child,\nindented."}


def test_a_class_without_source_has_no_descriptions():
    """Such as one of a plug-in that is compiled, or made while the program runs."""
    made = create_model("Made", __base__=Parent, more=(int, 1))

    assert field_docs(made).keys() == {"kept", "replaced"}


def test_the_document_of_the_admin_api_has_them():
    """Of queries."""
    described = describe(ENDPOINTS)["paths"].values()
    texts = {each["name"]: each["description"] for path in described for each in path["get"]["parameters"]}

    assert texts["since"].startswith("From when:"), texts
