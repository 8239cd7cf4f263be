"""Texts for people without what must not be read: passwords of URLs and of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from annheal.model.texts.spec import KEY_VARIABLE_PREFIX

MASK: Final = "***"
SECRET_VARIABLES: Final = ("ANNHEAL_ETCD_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
SECRET_CHARACTERS_MIN: Final = 4
"""Shorter values are words of many texts: masking them would hide much and protect nothing."""

# Up to the last @ of a word: a password may hold any character, an @ too.
_USERINFO = re.compile(r"//[^\s'\"]*@")
_BARE_USERINFO = re.compile(r"[^\s'\"/:@]+:[^\s'\"/]+@")


def mask_userinfo(text: str) -> str:
    """Return `text` with what stands before the @ of a URL, or of `user:password@host`, masked."""
    if "@" not in text:
        return text
    return _BARE_USERINFO.sub(f"{MASK}@", _USERINFO.sub(f"//{MASK}@", text))


def environment_secrets(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the values of the environment that nobody may read, the longest first."""
    names = [*SECRET_VARIABLES, *(name for name in environ if name.startswith(KEY_VARIABLE_PREFIX))]
    values = {environ.get(name, "") for name in names}
    secrets = [value for value in values if len(value) >= SECRET_CHARACTERS_MIN]
    return tuple(sorted(secrets, key=len, reverse=True))


def mask_secrets(text: str, *, secrets: tuple[str, ...]) -> str:
    """Return `text` with every one of `secrets`, and the userinfo of URLs, masked."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return mask_userinfo(text)
