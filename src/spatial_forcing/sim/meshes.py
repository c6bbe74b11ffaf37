"""Mesh simplification by vertex clustering, for a compiled MuJoCo model.

Software rendering spends its time on triangles that are smaller than a pixel. Vertices in one cell of a cubic
grid become one vertex (Rossignac and Borrel, 1993). Only the drawn faces change; collisions use the convex
hulls. F faces, V vertices.
"""

from typing import Any

import numpy as np


def cluster_faces(
    vertices_V3: np.ndarray, faces_F3: np.ndarray, cell: float
) -> tuple[np.ndarray, np.ndarray]:
    """Merges vertices by grid cell and drops the faces that collapse.

    Args:
        vertices_V3: positions, metres.
        faces_F3: vertex indices.
        cell: edge of a grid cell, metres.

    Returns:
        Faces (F', 3) that use a subset of the vertices, and the index (F',) of the face each one came from.
    """
    cells_V3 = np.floor((vertices_V3 - vertices_V3.min(axis=0)) / cell).astype(np.int64)
    _, cluster_V = np.unique(cells_V3, axis=0, return_inverse=True)
    cluster_V = cluster_V.reshape(-1)
    count_C = np.bincount(cluster_V)
    mean_C3 = (
        np.stack([np.bincount(cluster_V, vertices_V3[:, i]) for i in range(3)], axis=1) / count_C[:, None]
    )
    error_V = np.square(vertices_V3 - mean_C3[cluster_V]).sum(axis=1)
    order_V = np.lexsort((np.arange(len(error_V)), error_V, cluster_V))
    first_C = np.concatenate([[0], np.cumsum(count_C)[:-1]])
    chosen_C = order_V[first_C]

    clusters_F3 = cluster_V[faces_F3]
    a, b, c = clusters_F3.T
    alive_F = np.flatnonzero((a != b) & (b != c) & (c != a))
    _, keep = np.unique(np.sort(clusters_F3[alive_F], axis=1), axis=0, return_index=True)
    origin = alive_F[np.sort(keep)]
    return chosen_C[clusters_F3[origin]].astype(faces_F3.dtype), origin


def decimate(model: Any, cell: float = 0.012, small: int = 800) -> int:
    """Simplifies the rendered meshes of `model` in place; must run before a render context is made from it.

    Args:
        model: a `mujoco.MjModel`.
        cell: edge of a grid cell, metres; 12 mm is about two pixels of a 112 px image.
        small: meshes with fewer faces than this are left alone.

    Returns:
        The number of faces that are drawn afterwards.
    """
    for mesh in range(model.nmesh):
        start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        if count < small:
            continue
        vertex = model.mesh_vertadr[mesh]
        vertices_V3 = model.mesh_vert[vertex : vertex + model.mesh_vertnum[mesh]].astype(np.float64)
        faces_F3, origin = cluster_faces(vertices_V3, model.mesh_face[start : start + count], cell)
        end = start + len(faces_F3)
        model.mesh_face[start:end] = faces_F3
        model.mesh_facenormal[start:end] = model.mesh_facenormal[start + origin]
        model.mesh_facetexcoord[start:end] = model.mesh_facetexcoord[start + origin]
        model.mesh_facenum[mesh] = len(faces_F3)
    return int(model.mesh_facenum.sum())
