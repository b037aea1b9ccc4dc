"""Tables (meta.k8s.io/v1): what `kubectl get` prints, as Kubernetes prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def table(
    plural: str,
    objects: Sequence[Json],
    *,
    now_s: float,
    include: str = "Metadata",
    list_metadata: Json | None = None,
    printer_columns: Sequence[Json] | None = None,
    headers: bool = True,
) -> Json:
    """A Table of these objects (each with apiVersion and kind).

    `plural`: such as `pods`; what is not known has the columns Name and `Created At`. `include`: the query parameter
    includeObject, None, Metadata (also for an empty text) or Object. `list_metadata`: the metadata of the list
    (resourceVersion, continue, remainingItemCount); of a single object its resourceVersion. `printer_columns`:
    additionalPrinterColumns of a CRD's version ([] when it names none), None for what is no custom resource.
    `headers=False`: without column definitions, for the second and all later events of a watch."""
    raise NotImplementedError
