"""The nearest windows without looking at all of them: a graph by faiss, and what it may cost.

The graph is HNSW (Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using
Hierarchical Navigable Small World graphs", 2018) over inner products of rows of length 1, built by one
thread so that equal rows give equal bytes. It holds the rows in float16 beside its links. It proposes;
scores always come from the archive's own rows.

faiss is the extra `index`; without it every search looks at all windows.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amrctl import provenance
from amrctl.archive.store import Graph, Vectors
from amrctl.data.features import Rows
from amrctl.errors import ArchiveError
from amrctl.progress import SILENT, Reporter

Ids = npt.NDArray[np.int64]
NEAREST_FROM = 50_000  # windows from which on a graph is built
LINKS = 16  # of a window to its neighbours, on the levels above the lowest; there twice as many
BREADTH = 100  # candidates that are kept while a window is linked
_BLOCK = 4096  # rows that are converted at a time


def available() -> bool:
    """Whether faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def _faiss() -> Any:
    if not available():
        raise ArchiveError("faiss is not installed; pip install 'amrctl[index]', or search with --exact")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its wrappers, about themselves
        import faiss

    return faiss


def build(rows: Vectors, target: Path, report: Reporter = SILENT) -> Graph:
    """Write the graph over `rows` `(n, dim)` to `target`."""
    faiss = _faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        graph = faiss.IndexHNSWSQ(
            rows.shape[1], faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT
        )
        graph.hnsw.efConstruction = BREADTH
        graph.train(np.ascontiguousarray(rows[:1], np.float32))
        with report.bar("nearest windows", len(rows), unit="windows") as bar:
            for start in range(0, len(rows), _BLOCK):
                piece = np.ascontiguousarray(rows[start : start + _BLOCK], np.float32)
                graph.add(piece)
                bar.advance(len(piece))
        with provenance.writing(target) as temporary:
            faiss.write_index(graph, str(temporary))
    finally:
        faiss.omp_set_num_threads(threads)
    return Graph(file=target.name, links=LINKS, breadth=BREADTH)


class Nearest:
    """A graph that is open for searching; raises `ArchiveError` when it does not fit `rows`."""

    def __init__(self, path: Path, rows: Vectors) -> None:
        faiss = _faiss()
        try:
            self._graph = faiss.read_index(str(path))
        except RuntimeError:
            raise ArchiveError(
                f"{path} is missing or damaged; run amrctl index with --overwrite, or search with --exact"
            ) from None
        if (self._graph.ntotal, self._graph.d) != rows.shape:
            raise ArchiveError(
                f"{path} is about {self._graph.ntotal:,} windows of {self._graph.d} numbers, not "
                f"{rows.shape[0]:,} of {rows.shape[1]}; run amrctl index with --overwrite"
            )
        self._parameters = faiss.SearchParametersHNSW

    def search(self, query: Rows, count: int) -> Ids:
        """About the `count` windows nearest to `query` `(dim,)`, best first."""
        # The recordings that hold nothing near are scattered over the graph: with twice `count` a tenth
        # of them was missed, with this less than a hundredth.
        how = self._parameters(efSearch=max(8 * count, 4 * BREADTH))
        _, ids = self._graph.search(np.ascontiguousarray(query[None], np.float32), count, params=how)
        found: Ids = ids[0]
        return found[found >= 0]
