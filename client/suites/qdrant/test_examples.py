"""Queries by several examples: the scores of local mode, over every kind of vector."""
import random

import pytest
from qdrant_client import models

from conftest import dense, sparse

Field = models.FieldCondition
CHEAP = models.Filter(must=[Field(key="price", range=models.Range(lt=60))])
SIZES = {"cosine": 8, "euclid": 6, "dot": 4, "words": None}


@pytest.fixture
def rng():
    return random.Random(31)


@pytest.fixture(params=SIZES)
def using(request):
    return request.param


def vector(rng, using):
    return sparse(rng) if SIZES[using] is None else dense(rng, SIZES[using])


def ids(points, *places):
    return [points[place].id for place in places]


@pytest.mark.parametrize("strategy", [models.RecommendStrategy.BEST_SCORE, models.RecommendStrategy.SUM_SCORES])
def test_recommended_by_scores(both, points, rng, using, strategy):
    first, second, third = ids(points, 1, 5, 9)
    for positive, negative in (
        ([first, vector(rng, using)], [second]),
        ([first], []),
        ([], [second, third]),
        ([vector(rng, using)], [vector(rng, using), third]),
    ):
        liked = models.RecommendQuery(
            recommend=models.RecommendInput(positive=positive, negative=negative, strategy=strategy)
        )
        found = both.query(f"{positive} {negative}", query=liked, using=using, limit=25)
        given = {example for example in positive + negative if isinstance(example, (int, str))}
        assert not given & {hit.id for hit in found}
        both.query(query=liked, using=using, limit=10, offset=4, query_filter=CHEAP)


def test_discovered(both, points, rng, using):
    first, second, third, fourth = ids(points, 1, 5, 9, 14)
    for target, context in (
        (vector(rng, using), [models.ContextPair(positive=first, negative=second)]),
        (third, [models.ContextPair(positive=first, negative=second), models.ContextPair(positive=fourth, negative=vector(rng, using))]),
        (third, []),
    ):
        query = models.DiscoverQuery(discover=models.DiscoverInput(target=target, context=context))
        both.query(f"{target} {context}", query=query, using=using, limit=25)
        both.query(query=query, using=using, limit=10, query_filter=CHEAP)


def test_in_context(both, points, rng, using):
    first, second, third, fourth = ids(points, 1, 5, 9, 14)
    pairs = [models.ContextPair(positive=first, negative=second), models.ContextPair(positive=vector(rng, using), negative=fourth)]
    for context in (pairs, pairs[:1]):
        both.query(f"{context}", query=models.ContextQuery(context=context), using=using, limit=30)


def test_examples_of_prefetched_points(both, points, rng):
    liked = models.RecommendInput(positive=ids(points, 1), negative=ids(points, 5), strategy=models.RecommendStrategy.BEST_SCORE)
    prefetch = models.Prefetch(query=dense(rng, 8), using="cosine", limit=40, params=models.SearchParams(exact=True))
    both.query(prefetch=prefetch, query=models.RecommendQuery(recommend=liked), using="euclid", limit=10)


def test_what_lacks_examples_is_refused(both):
    nothing = models.RecommendInput(positive=[], negative=[], strategy=models.RecommendStrategy.BEST_SCORE)
    with pytest.raises(Exception, match="positive"):
        both.server.query_points(both.collection, query=models.RecommendQuery(recommend=nothing), using="cosine")
