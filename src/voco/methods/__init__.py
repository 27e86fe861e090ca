"""The pre-training methods, one per file; chosen by ``name``."""

from voco.methods.voco import VoCoConfig

MethodSettings = VoCoConfig
"""Settings of any method."""


def available() -> tuple[str, ...]:
    """Names of all methods."""
    return ("voco",)
