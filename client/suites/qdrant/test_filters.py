"""Every kind of condition, alone and combined at random: the same points match as in local mode."""
import random
from datetime import datetime, timedelta, timezone

import pytest
from qdrant_client import models

from conftest import WORDS

Field = models.FieldCondition


def keyword(rng):
    return Field(key=rng.choice(["group", "tags", "items[].kind"]), match=models.MatchValue(value=rng.choice(WORDS + ["g1", "g2"])))


def integer(rng):
    return Field(key=rng.choice(["number", "deep.er.value", "items[].size"]), match=models.MatchValue(value=rng.randint(0, 12)))


def boolean(rng):
    return Field(key="flag", match=models.MatchValue(value=rng.random() < 0.5))


def match_any(rng):
    return Field(key="tags", match=models.MatchAny(any=rng.sample(WORDS, 2)))


def match_except(rng):
    return Field(key=rng.choice(["tags", "maybe", "group"]), match=models.MatchExcept(**{"except": rng.sample(WORDS, 3) + ["g1"]}))


def text(rng):
    return Field(key="text", match=models.MatchText(text=" ".join(rng.sample(WORDS, rng.randint(1, 2))).upper()))


def text_any(rng):
    return Field(key="text", match=models.MatchTextAny(text_any=" ".join(rng.sample(WORDS, 2))))


def phrase(rng):
    return Field(key="text", match=models.MatchPhrase(phrase=" ".join(rng.choices(WORDS, k=2))))


def number_range(rng):
    low = rng.uniform(0, 100)
    bounds = [{"gt": low}, {"gte": low}, {"lt": low}, {"lte": low}, {"gte": low, "lt": low + 30}, {"gt": 90, "lt": 10}]
    return Field(key=rng.choice(["price", "number"]), range=models.Range(**rng.choice(bounds)))


def datetime_range(rng):
    zone = timezone(timedelta(hours=rng.randint(-11, 11)))
    since = datetime(rng.randint(2010, 2024), rng.randint(1, 12), 5, 3, 30, tzinfo=zone)
    bounds = [{"gt": since}, {"lte": since}, {"gte": since, "lt": since + timedelta(days=500)}, {"gte": since.date()}]
    return Field(key="when", range=models.DatetimeRange(**rng.choice(bounds)))


def array_item(rng):
    places = [rng.choice(["[0]", "[1]", "[2]", "[]"]) for _ in range(2)]
    return Field(key=f"grid{places[0]}{places[1]}", range=models.Range(lt=rng.randint(-9, 9)))


def corner(rng):
    return models.GeoPoint(lat=rng.uniform(-80, 80), lon=rng.uniform(-179, 179))


def box(rng):
    return Field(key="place", geo_bounding_box=models.GeoBoundingBox(top_left=corner(rng), bottom_right=corner(rng)))


def circle(rng):
    return Field(key="place", geo_radius=models.GeoRadius(center=corner(rng), radius=rng.uniform(1e5, 9e6)))


def polygon(rng):
    west, south = rng.uniform(-160, 60), rng.uniform(-60, 20)

    def ring(inset):
        ends = [(inset, inset), (80 - inset, inset), (80 - inset, 50 - inset), (inset, 50 - inset), (inset, inset)]
        return models.GeoLineString(points=[models.GeoPoint(lon=west + x, lat=south + y) for x, y in ends])

    holes = rng.choice([None, [ring(15)]])
    return Field(key="place", geo_polygon=models.GeoPolygon(exterior=ring(0), interiors=holes))


def values_count(rng):
    bounds = [{"gt": 1}, {"gte": 2}, {"lt": 2}, {"lte": 0}, {"gte": 1, "lt": 3}]
    return Field(key=rng.choice(["tags", "items", "maybe", "grid[]", "group"]), values_count=models.ValuesCount(**rng.choice(bounds)))


def is_empty(rng):
    key = rng.choice(["maybe", "tags", "items", "items[].kind", "nobody", "place"])
    return rng.choice([models.IsEmptyCondition(is_empty=models.PayloadField(key=key)), Field(key=key, is_empty=rng.random() < 0.5)])


def is_null(rng):
    key = rng.choice(["maybe", "tags", "nobody"])
    return rng.choice([models.IsNullCondition(is_null=models.PayloadField(key=key)), Field(key=key, is_null=rng.random() < 0.5)])


def has_id(rng):
    return models.HasIdCondition(has_id=rng.sample(range(240), 60))


def has_vector(rng):
    return models.HasVectorCondition(has_vector=rng.choice(["cosine", "words"]))


def nested(rng):
    kind = Field(key="kind", match=models.MatchValue(value=rng.choice(WORDS)))
    size = Field(key="size", range=models.Range(gte=rng.randint(0, 9)))
    inner = rng.choice([models.Filter(must=[kind, size]), models.Filter(must=[kind], must_not=[size]), models.Filter(should=[kind, size])])
    return models.NestedCondition(nested=models.Nested(key="items", filter=inner))


KINDS = [
    keyword, integer, boolean, match_any, match_except, text, text_any, phrase, number_range, datetime_range, array_item, box,
    circle, polygon, values_count, is_empty, is_null, has_id, has_vector, nested,
]  # fmt: skip


def combined(rng, depth=0):
    def some(least=1):
        return [combined(rng, depth + 1) if depth < 2 and rng.random() < 0.25 else rng.choice(KINDS)(rng) for _ in range(rng.randint(least, 3))]

    form = rng.choice(["must", "should", "must_not", "min_should", "all", "one"])
    if form == "min_should":
        conditions = some(2)
        return models.Filter(min_should=models.MinShould(conditions=conditions, min_count=rng.randint(1, len(conditions))))
    if form == "all":
        return models.Filter(must=some(), should=some(), must_not=some())
    # One condition need not stand in a list.
    return models.Filter(must=some()[0]) if form == "one" else models.Filter(**{form: some()})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_condition(both, kind):
    rng = random.Random(kind.__name__)
    counts = []
    for _ in range(16):
        condition = kind(rng)
        counts += [both.count(models.Filter(must=[condition])), both.count(models.Filter(must_not=[condition]))]
    # A comparison that only ever saw nothing shows nothing.
    assert max(counts) > 0


@pytest.mark.parametrize("seed", range(60))
def test_combined(both, seed):
    rng = random.Random(seed)
    condition = combined(rng)
    both.count(condition)
    both.scroll(f"scroll {condition!r}", scroll_filter=condition, with_vectors=False)
    vector = [rng.uniform(-1, 1) for _ in range(8)]
    both.query(f"query {condition!r}", query=vector, using="cosine", query_filter=condition, limit=20)


def test_indexes_change_nothing(own):
    """Conditions are answered by indexes where there are some, with the same points."""
    for field, kind in [
        ("group", "keyword"), ("number", "integer"), ("price", "float"), ("flag", "bool"), ("when", "datetime"),
        ("tags", "keyword"), ("items[].kind", "keyword"), ("text", "text"), ("place", "geo"),
    ]:  # fmt: skip
        own.server.create_payload_index(own.collection, field, field_schema=kind, wait=True)
    schema = own.server.get_collection(own.collection).payload_schema
    assert schema["group"].data_type == models.PayloadSchemaType.KEYWORD and schema["price"].points > 0
    rng = random.Random(5)
    for _ in range(80):
        own.count(combined(rng))
    own.server.delete_payload_index(own.collection, "group")
    assert "group" not in own.server.get_collection(own.collection).payload_schema


@pytest.mark.parametrize(
    "wrong",
    [
        models.Filter(must=[Field(key="", match=models.MatchValue(value=1))]),
        models.Filter(must=[Field(key="when", range=models.DatetimeRange(gt="2020-01-01T00:00:00Z")), Field(key="place", geo_radius=models.GeoRadius(center=models.GeoPoint(lat=500, lon=0), radius=5))]),
    ],
)  # fmt: skip
def test_wrong_filters_are_refused(both, wrong):
    with pytest.raises(Exception) as refused:
        both.server.count(both.collection, count_filter=wrong)
    assert "400" in str(refused.value) or "INVALID_ARGUMENT" in str(refused.value)
