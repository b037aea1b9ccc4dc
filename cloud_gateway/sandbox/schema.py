"""Structural schemas of CustomResourceDefinitions: what may stand in a custom resource, and what is filled in.

    check(schema, obj) -> (a copy that is pruned and has its defaults, what is wrong with it)

A problem is (path, message, reason) in Kubernetes' words, such as

    ("spec.port", 'Invalid value: "string": spec.port in body must be of type integer: "string"', "FieldValueTypeInvalid")

Rules in CEL (x-kubernetes-validations) are not evaluated: whoever tries out a CRD with them here sees less refused than
in a cluster. Everything else of a structural schema counts.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
Problem = tuple[str, str, str]  # path, message, reason: the parts of a cause in Status


def check(schema: Json, obj: Json) -> tuple[Json, list[Problem]]:
    """`schema`: openAPIV3Schema of one version. `obj` is the whole object and stays as it is; apiVersion, kind and
    metadata are not pruned. The copy is pruned first, then defaulted, then checked."""
    raise NotImplementedError


def unknown(schema: Json, obj: Json) -> list[str]:
    """The paths that pruning would remove, for fieldValidation=Strict and Warn: `spec.replica`."""
    raise NotImplementedError


def check_definition(crd: Json) -> list[Problem]:
    """What is wrong with a CustomResourceDefinition (apiextensions.k8s.io/v1) itself."""
    raise NotImplementedError
