"""`--set key.path=value` on a raw recipe."""

from __future__ import annotations

import re
from typing import Any

import yaml

from amrctl.errors import RecipeError, near

LIST_SLOTS = ("fusion", "encoder", "heads", "refine", "auxiliary")


def apply_set(raw: dict[str, Any], item: str) -> None:
    """Apply one `key.path=value` in place. List items are addressed by component kind (or index);
    the value `null` removes what the path names. Raises `RecipeError`."""
    path, equals, text = item.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {item}: write key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set {item}: the value is not readable as YAML") from None
    keys = path.split(".")
    if keys[:3] == ["model", "decoder", "hooks"]:  # where a recipe writes them; they are kept beside it
        keys[1:3] = ["hooks"]
    node: Any = raw
    for depth, key in enumerate(keys[:-1]):
        node = _step(node, key, item, ".".join(keys[: depth + 1]))
    last = keys[-1]
    if isinstance(node, list):
        index = _index(node, last, item)
        if value is None:
            del node[index]
        else:
            node[index] = value
    elif value is None:
        node.pop(last, None)
    else:
        node[last] = value


def _step(node: Any, key: str, item: str, path: str) -> Any:
    if isinstance(node, list):
        index = _index(node, key, item)
        if isinstance(node[index], str):
            node[index] = {"name" if path.startswith("features.") else "kind": node[index]}
        if not isinstance(node[index], (dict, list)):
            raise RecipeError(f"--set {item}: '{path}' is a value, not a block")
        return node[index]
    child = node.get(key)
    if child is None and path.removeprefix("model.") in LIST_SLOTS:
        raise RecipeError(f"--set {item}: this recipe has no {key} components; add some with {path}=[...]")
    if child is None:
        child = node[key] = {}
    elif isinstance(child, str):
        child = node[key] = {"kind": child}
    elif not isinstance(child, (dict, list)):
        if path.startswith("losses."):
            child = node[key] = {"weight": child}
        else:
            raise RecipeError(f"--set {item}: '{path}' is a value, not a block")
    return child


def _index(items: list[Any], key: str, item: str) -> int:
    if re.fullmatch("-?[0-9]{1,9}", key) and -len(items) <= int(key) < len(items):
        return int(key)
    names = [str(i.get("kind", i.get("name"))) if isinstance(i, dict) else str(i) for i in items]
    if key in names:
        return names.index(key)
    raise RecipeError(f"--set {item}: the list has no '{key}'{near(key, names)}")
