"""Searches of every kind that the frameworks send: the same hits and scores as local mode's exact search."""
import random

import pytest
from qdrant_client import models

from both import same_hits, same_records
from conftest import dense, sparse

Field = models.FieldCondition
CHEAP = models.Filter(must=[Field(key="price", range=models.Range(lt=60))])
EXACT = models.SearchParams(exact=True)


@pytest.fixture
def rng():
    return random.Random(23)


@pytest.mark.parametrize("using, size", [("cosine", 8), ("euclid", 6), ("dot", 4)])
def test_nearest(both, rng, using, size):
    for _ in range(5):
        query = dense(rng, size)
        hits = both.query(query=query, using=using, limit=300, search_params=EXACT)
        both.query(query=query, using=using, limit=10, offset=7, query_filter=CHEAP, search_params=EXACT)
        both.query(query=query, using=using, limit=10, with_vectors=True, with_payload=["group"])
        both.query(query=query, using=using, limit=10, with_vectors=["dot"], with_payload=False)
        # Between two scores, so that neither side's rounding decides.
        threshold = (hits[40].score + hits[41].score) / 2
        both.query(query=query, using=using, limit=300, score_threshold=threshold, search_params=EXACT)


def test_parameters_are_taken(both, rng):
    params = models.SearchParams(hnsw_ef=256, exact=False, indexed_only=False, quantization=models.QuantizationSearchParams(rescore=True))
    both.query(query=dense(rng, 8), using="cosine", limit=10, search_params=params)


def test_sparse(both, rng):
    for _ in range(5):
        both.query(query=sparse(rng), using="words", limit=300)
        both.query(query=sparse(rng), using="words", limit=10, query_filter=CHEAP)


def test_by_example(both, points):
    for point in (points[1].id, points[0].id):
        found = both.query(query=point, using="cosine", limit=10, search_params=EXACT)
        assert point not in [hit.id for hit in found]
    with pytest.raises(Exception, match="999999"):
        both.server.query_points(both.collection, query=999_999, using="cosine")


def test_recommended(both, points, rng):
    liked = models.RecommendInput(positive=[points[1].id, dense(rng, 8)], negative=[points[5].id])
    both.query(query=models.RecommendQuery(recommend=liked), using="cosine", limit=20, search_params=EXACT)


@pytest.mark.parametrize(
    "fusion",
    [
        models.FusionQuery(fusion=models.Fusion.RRF),
        models.FusionQuery(fusion=models.Fusion.DBSF),
        models.RrfQuery(rrf=models.Rrf(k=60)),
        models.RrfQuery(rrf=models.Rrf(k=10, weights=[3.0, 1.0])),
    ],
    ids=["rrf", "dbsf", "rrf-k", "rrf-weights"],
)
def test_fused(both, rng, fusion):
    for _ in range(4):
        prefetch = [
            models.Prefetch(query=dense(rng, 8), using="cosine", limit=30, params=EXACT),
            models.Prefetch(query=dense(rng, 6), using="euclid", limit=30, filter=CHEAP, params=EXACT),
        ]
        hits = both.query(prefetch=prefetch, query=fusion, limit=60, with_payload=True)
        both.query(prefetch=prefetch, query=fusion, limit=5, offset=5)
        both.query(prefetch=prefetch, query=fusion, limit=60, score_threshold=hits[9].score - 1e-3)


def test_dense_and_sparse_fused(both, rng):
    prefetch = [
        models.Prefetch(query=dense(rng, 8), using="cosine", limit=50, params=EXACT),
        models.Prefetch(query=sparse(rng), using="words", limit=50),
    ]
    both.query(prefetch=prefetch, query=models.FusionQuery(fusion=models.Fusion.RRF), limit=100)


def test_ranked_anew(both, rng):
    """A vector scores what a prefetch found; prefetches nest."""
    inner = models.Prefetch(query=dense(rng, 8), using="cosine", limit=60, params=EXACT)
    outer = models.Prefetch(prefetch=[inner], query=dense(rng, 6), using="euclid", limit=20)
    both.query(prefetch=outer, query=dense(rng, 4), using="dot", limit=10)
    both.query(prefetch=[inner], query=dense(rng, 4), using="dot", limit=10, query_filter=CHEAP)


def test_weighed_by_a_formula(both, rng):
    """Every kind of expression, over two prefetches."""
    prefetch = [
        models.Prefetch(query=dense(rng, 8), using="cosine", limit=60, params=EXACT),
        models.Prefetch(query=dense(rng, 4), using="dot", limit=60, filter=CHEAP, params=EXACT),
    ]
    decay = models.DecayParamsExpression(x="number", target=20.0, midpoint=0.3, scale=15.0)
    root = models.SqrtExpression(sqrt=models.AbsExpression(abs="number"))
    formulas = [
        models.SumExpression(sum=["$score[0]", models.MultExpression(mult=[0.5, "$score[1]"])]),
        models.SumExpression(sum=["$score", models.NegExpression(neg=models.LinDecayExpression(lin_decay=decay))]),
        models.MultExpression(mult=["$score", models.ExpDecayExpression(exp_decay=decay), 3.0]),
        models.SumExpression(sum=["$score", models.GaussDecayExpression(gauss_decay=decay)]),
        models.DivExpression(div=models.DivParams(left="$score", right="$score[1]", by_zero_default=-1.0)),
        models.SumExpression(sum=[root, models.HasIdCondition(has_id=[1, 2, 3]), "$score"]),
        models.ExpExpression(exp=models.NegExpression(neg=models.PowExpression(
            pow=models.PowParams(base="$score", exponent=2.0)))),
    ]
    for formula in formulas:
        query = models.FormulaQuery(formula=formula, defaults={"number": 7, "$score[1]": 0.25})
        both.query(prefetch=prefetch, query=query, limit=100)
        both.query(prefetch=prefetch, query=query, limit=10, offset=5, with_payload=True)


def test_turned_by_feedback(both, points, rng):
    for scores in ([0.7], [0.9, 0.1], [0.2, 0.8, 0.5]):
        items = [models.FeedbackItem(example=points[at].id, score=score) for at, score in enumerate(scores)]
        items.append(models.FeedbackItem(example=dense(rng, 8), score=0.4))
        naive = models.NaiveFeedbackStrategyParams(a=0.6, b=1.5, c=0.8)
        feedback = models.RelevanceFeedbackInput(
            target=dense(rng, 8), feedback=items, strategy=models.NaiveFeedbackStrategy(naive=naive)
        )
        both.query(query=models.RelevanceFeedbackQuery(relevance_feedback=feedback), using="cosine", limit=30)


def test_distances_within_a_sample(both):
    """All points that match are drawn, so that both have the same sample."""
    wanted = models.Filter(must=[CHEAP, models.HasIdCondition(has_id=list(range(60)))])
    ours, theirs = both.do("search_matrix_offsets", using="cosine", sample=1000, limit=4, query_filter=wanted)
    assert ours.ids == theirs.ids and ours.offsets_row == theirs.offsets_row
    assert all(near(score, other) for score, other in zip(ours.scores, theirs.scores, strict=True))
    ours, theirs = both.do("search_matrix_pairs", using="cosine", sample=1000, limit=4, query_filter=wanted)
    assert [pair.a for pair in ours.pairs] == [pair.a for pair in theirs.pairs]


def test_diverse(both, rng):
    query = dense(rng, 8)
    for diversity in (0.0, 0.3, 0.9):
        mmr = models.NearestQuery(nearest=query, mmr=models.Mmr(diversity=diversity, candidates_limit=40))
        ours, theirs = both.do("query_points", query=mmr, using="cosine", limit=10, search_params=EXACT)
        assert [hit.id for hit in ours.points] == [hit.id for hit in theirs.points], diversity


def test_sampled(both):
    sample = models.SampleQuery(sample=models.Sample.RANDOM)
    draws = [[hit.id for hit in both.server.query_points(both.collection, query=sample, limit=20).points] for _ in range(3)]
    assert all(len(set(draw)) == 20 for draw in draws) and len({tuple(draw) for draw in draws}) > 1
    cheap = both.server.query_points(both.collection, query=sample, limit=500, query_filter=CHEAP).points
    assert len(cheap) == both.count(CHEAP)


def test_without_a_query(both):
    ours, theirs = both.do("query_points", limit=15, query_filter=CHEAP)
    assert [hit.id for hit in ours.points] == [hit.id for hit in theirs.points]


def test_ordered_by_payload(both):
    both.server.create_payload_index(both.collection, "number", "integer")
    order = models.OrderByQuery(order_by=models.OrderBy(key="number", direction=models.Direction.DESC))
    ours, theirs = both.do("query_points", query=order, limit=12)
    assert [hit.id for hit in ours.points] == [hit.id for hit in theirs.points]


def test_batch(both, rng):
    requests = [
        models.QueryRequest(query=dense(rng, 8), using="cosine", limit=5, params=EXACT, with_payload=True),
        models.QueryRequest(query=sparse(rng), using="words", limit=9, filter=CHEAP),
        models.QueryRequest(query=1, using="dot", limit=3, params=EXACT),
    ]
    ours, theirs = both.do("query_batch_points", requests=requests)
    for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        same_hits(one.points, other.points, f"request {at}")


@pytest.mark.parametrize("by", ["group", "tags", "number"])
def test_groups(both, rng, by):
    query = dense(rng, 8)
    arguments = {"query": query, "using": "cosine", "group_by": by, "limit": 5, "group_size": 3, "search_params": EXACT}
    ours, theirs = both.do("query_points_groups", **arguments, with_payload=True)
    assert [group.id for group in ours.groups] == [group.id for group in theirs.groups]
    for one, other in zip(ours.groups, theirs.groups):
        same_hits(one.hits, other.hits, f"group {one.id}")


def test_groups_with_lookup(server, both, rng):
    name = f"{both.collection}-groups"
    for client in (server, both.local):
        client.create_collection(name, vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        client.upsert(name, [models.PointStruct(id=at, vector=[1.0, 1.0], payload={"about": at}) for at in range(240)])
    try:
        lookup = models.WithLookup(collection=name, with_payload=True, with_vectors=False)
        ours, theirs = both.do("query_points_groups", query=dense(rng, 8), using="cosine", group_by="number", limit=4, with_lookup=lookup, search_params=EXACT)
        same_records([group.lookup for group in ours.groups], [group.lookup for group in theirs.groups], "lookup")
    finally:
        server.delete_collection(name)


def test_lookup_from(server, both):
    name = f"{both.collection}-other"
    for client in (server, both.local):
        client.create_collection(name, vectors_config={"v": models.VectorParams(size=8, distance=models.Distance.DOT)})
        client.upsert(name, [models.PointStruct(id=3, vector={"v": [0.1 * at for at in range(8)]})])
    try:
        both.query(query=3, using="cosine", lookup_from=models.LookupLocation(collection=name, vector="v"), limit=10, search_params=EXACT)
        with pytest.raises(Exception, match="Not found: Collection"):
            server.query_points(both.collection, query=3, using="cosine", lookup_from=models.LookupLocation(collection="nobody", vector="v"))
    finally:
        server.delete_collection(name)


@pytest.mark.parametrize("wrong", [{"query": [1.0], "using": "cosine"}, {"query": [1.0] * 8, "using": "nobody"}, {"query": [1.0] * 8}])
def test_wrong_queries_are_refused(both, wrong):
    with pytest.raises(Exception) as refused:
        both.server.query_points(both.collection, **wrong)
    assert "400" in str(refused.value) or "INVALID_ARGUMENT" in str(refused.value)
