"""Encryption and sealing: AES-256-GCM over each chunk, HMAC-SHA256 over each manifest, both from one key file.

The key file holds 32 bytes, raw or as base64 or hex (`openssl rand -base64 32 > backup.key`). Chunks and manifests use
keys derived from it (HKDF-SHA256, RFC 5869). The name of a chunk and the id of its backup are authenticated with it, so
that chunks cannot be swapped. Without a key, chunks are as they are and a manifest's seal is a plain SHA-256: that
finds damage, not an attacker.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from postlane.config import ConfigurationError
from postlane.ops.backup.errors import Damaged, WrongKey

ALGORITHM = "AES-256-GCM"
KEY_BYTES = 32
_NONCE_BYTES = 12


class Vault:
    """Closes and opens chunks and seals manifests; `Vault(None)` does so without a key."""

    def __init__(self, key: bytes | None) -> None:
        self._cipher = None if key is None else AESGCM(_derived(key, b"postlane backup chunks"))
        self._seal = None if key is None else _derived(key, b"postlane backup manifests")
        # Tells a wrong key from damage; a digest of a derived key says nothing about the key.
        self.key_id = None if key is None else sha256(_derived(key, b"postlane backup key id")).hexdigest()[:16]

    def close(self, packed: bytes, name: str) -> bytes:
        if self._cipher is None:
            return packed
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, packed, name.encode())

    def open(self, stored: bytes, name: str) -> bytes:
        """Raises Damaged."""
        if self._cipher is None:
            return stored
        try:
            return self._cipher.decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError):
            raise Damaged(f"{name}: cannot be decrypted: changed, cut short, or put in another's place") from None

    def seal(self, body: bytes) -> str:
        if self._seal is None:
            return sha256(body).hexdigest()
        return hmac.new(self._seal, body, sha256).hexdigest()

    def check_key(self, key_id: str | None, name: str) -> None:
        """Raises WrongKey unless this is the key that `name` was made with (or both have none)."""
        if key_id == self.key_id:
            return
        if key_id is None:
            raise WrongKey(f"{name} is not encrypted, but a key was given: one of the two is not what you think it is")
        if self.key_id is None:
            raise WrongKey(f"{name} is encrypted (key {key_id}): give --key-file")
        raise WrongKey(f"{name} is encrypted with key {key_id}; the key file holds {self.key_id}")


def vault_of(path: Path | None) -> Vault:
    """From a key file. Raises ConfigurationError, which never repeats what is in it."""
    if path is None:
        return Vault(None)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--key-file: {path}: {error.strerror}") from None
    key = _key_in(content)
    if key is None:
        raise ConfigurationError(f"--key-file: {path}: 32 bytes are expected, raw or as base64 or hex")
    return Vault(key)


def _key_in(content: bytes) -> bytes | None:
    if len(content) == KEY_BYTES:
        return content
    text = content.strip()
    for decode in (binascii.unhexlify, lambda t: base64.b64decode(t, validate=True)):
        try:
            key = decode(text)
        except (binascii.Error, ValueError):
            continue
        if len(key) == KEY_BYTES:
            return key
    return None


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(key)
