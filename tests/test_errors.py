"""What a person sees of a refusal."""

import traceback

from hubbub.errors import InputError


def test_a_traceback_ends_with_the_hint():
    shown = traceback.format_exception(InputError("where, rule, found", hint="type this"))
    assert "".join(shown).splitlines() == ["hubbub.errors.InputError: where, rule, found", "hint: type this"]
