"""Nested dicts of arrays, and the slash-separated paths of their leaves."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

Tree = dict[str, Any]


def path_name(path: tuple) -> str:
    """The slash-separated name of a leaf, from its path as jax.tree_util gives it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree: Tree) -> set[str]:
    """The slash-separated paths of a nested dict's leaves."""
    return set(flatten(tree))


def flatten(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """{slash-separated path: leaf} of a nested dict."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
    return {path_name(path): leaf for path, leaf in leaves}


def flatten_names(axes: Any) -> dict[str, tuple[str | None, ...]]:
    """`flatten` of a tree whose leaves are tuples of logical axis names."""
    return flatten(axes, is_leaf=lambda x: isinstance(x, tuple))


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The inverse of `flatten`."""
    tree: Tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
