"""Import protobuf without its message classes in pure Python: 1.0 MB that nothing uses beside the ones in C."""

from __future__ import annotations

import sys
from types import ModuleType

PURE_PYTHON = "google.protobuf.internal.python_message"


def import_protobuf() -> None:
    """Called by the generated code before anything else. An empty module stands in for the one left out while its users
    are imported; whoever asks for it afterwards gets the real one. Without protobuf's C code nothing is left out."""
    from google.protobuf.internal import api_implementation  # noqa: PLC0415

    if api_implementation.Type() != "upb" or PURE_PYTHON in sys.modules:
        return
    stand_in = sys.modules[PURE_PYTHON] = ModuleType(PURE_PYTHON)
    try:
        import google.protobuf.internal.builder  # noqa: F401, PLC0415
    finally:
        if sys.modules.get(PURE_PYTHON) is stand_in:
            del sys.modules[PURE_PYTHON]
