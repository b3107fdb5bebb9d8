"""Sparse and multi-vectors: what `vectors.py` compares."""
import vectors


def test_sparse_and_multi_vectors(url):
    vectors.run(url)
