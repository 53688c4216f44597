"""Every setting is documented, and named by the rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings, as_markdown

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
USUAL_NAMES = {
    "HOST",
    "PORT",
    "DATABASE_URL",
    "REDIS_URL",
    "RAILWAY_RAM_MB",
    "MAX_CONCURRENT_TRANSCRIPTIONS",
    "OVERLOAD_POLICY",
}
FIELDS = sorted(Settings.model_fields)


def test_the_document_is_what_the_settings_say() -> None:
    assert DOCUMENT.read_text("utf-8") == as_markdown(), "run: python -m app.settings > docs/settings.md"


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_has_help_and_a_name_by_the_rule(name: str) -> None:
    field = Settings.model_fields[name]
    env = field.validation_alias
    assert isinstance(env, str)
    assert env in USUAL_NAMES or env.startswith("STENOPOOL_")
    assert field.description
    assert "|" not in field.description
    assert f"| `{env}` |" in DOCUMENT.read_text("utf-8")


def test_no_two_settings_share_a_variable() -> None:
    names = [field.validation_alias for field in Settings.model_fields.values()]
    assert len(set(names)) == len(names)
    assert set(names) >= USUAL_NAMES
