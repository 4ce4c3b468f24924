"""Hiding secrets in texts that people or log collectors will read (pure).

What counts as a secret: the password of a database address, in URL or `key=value` form, and the user part of any URL.
"""

from __future__ import annotations

import re

MASK = "***"

# scheme://user:password@host: up to the last @ before a slash, so that an @ inside of a password is hidden as well.
_URL_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s/:@?#'\"]{0,256}):([^\s/?#'\"]{1,1024})@")
# password=..., sslpassword=..., passwd=..., token=...: plain, quoted (libpq: '' with \ escapes), or as a URL's query.
_KEY_VALUE = re.compile(
    r"(?i)\b((?:ssl)?password|passwd|pgpassword|token|secret|authorization)(\s*[=:]\s*)"
    r"(?:'(?:[^'\\]|\\.){0,1024}'|\"(?:[^\"\\]|\\.){0,1024}\"|(?:bearer\s+)?[^\s&'\",;}]{1,1024})"
)


def scrub(text: str) -> str:
    """Return `text` with every password in it replaced by `***`; everything else stays as it is."""
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{MASK}@", text)
    return _KEY_VALUE.sub(rf"\1\2{MASK}", text)


def mask_dsn(dsn: str) -> str:
    """Return a database address without its password; one in neither known form is hidden whole, one that is empty stays so."""
    if not dsn:
        return ""
    masked = scrub(dsn)
    if re.match(r"postgres(ql)?://", dsn):
        # A / ? or # inside of a password makes the address ambiguous: then too much is hidden rather than too little.
        authority = masked.split("://", 1)[1]
        if "@" in authority and f":{MASK}@" not in authority and ":" in authority.rsplit("@", 1)[0]:
            return MASK
        return masked
    return masked if re.match(r"\s*[a-z_]+\s*=", dsn) else MASK
