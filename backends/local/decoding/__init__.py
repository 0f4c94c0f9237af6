"""Chooses the tokens of answers with CTranslate2."""
