"""Meshes of fewer faces, for pictures of MuJoCo's models that are drawn on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np


def simplify(model: Any, cell: float, detailed: int) -> None:
    """Of the meshes of at least `detailed` faces, merges vertices that lie in one cell of so many
    metres, and drops faces without area or that are there twice. Normals and textures stay those of
    the corners.
    """
    for mesh in np.flatnonzero(model.mesh_facenum >= detailed):
        _simplify(model, mesh, cell)


def _simplify(model: Any, mesh: int, cell: float) -> None:
    first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    face, faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    vertices = model.mesh_vert[first : first + count]
    cells = np.unique(np.floor(vertices / cell), axis=0, return_inverse=True)[1].ravel()
    number = cells.max() + 1
    mean = np.stack([np.bincount(cells, vertices[:, k], number) for k in range(3)], 1)
    kept = np.full(number, count)
    np.minimum.at(kept, cells, np.arange(count))
    vertices[kept] = mean / np.bincount(cells)[:, None]
    corners = kept[cells[model.mesh_face[face : face + faces]]]
    normals = model.mesh_facenormal[face : face + faces].copy()
    textures = model.mesh_facetexcoord[face : face + faces].copy()
    a, b, c = corners.T
    whole = np.flatnonzero((a != b) & (b != c) & (a != c))
    once = np.unique(np.sort(corners[whole], 1), axis=0, return_index=True)[1]
    chosen = whole[np.sort(once)]
    model.mesh_face[face : face + len(chosen)] = corners[chosen]
    model.mesh_facenormal[face : face + len(chosen)] = normals[chosen]
    model.mesh_facetexcoord[face : face + len(chosen)] = textures[chosen]
    model.mesh_facenum[mesh] = len(chosen)
