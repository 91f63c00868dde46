"""Ids and random choices that depend on content alone."""

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sera_plugin.data.ids import (
    content_id,
    dataset_hash,
    example_ids,
    permutation,
    stream_key,
    uniforms,
)

texts = st.text(st.characters(), max_size=20)  # lone surrogates included
id_lists = st.lists(st.text(string.hexdigits, min_size=1, max_size=8), unique=True, max_size=30)


def test_content_id_is_fixed_for_ever():
    # Stored runs are resumed by these ids: BLAKE2b with 12 bytes of the text ["p", "c", "r"].
    assert content_id("p", "c", "r") == "feb2a0810baa032ba616227b"


@given(texts, texts, texts)
def test_content_id_is_24_hex_digits_and_tells_the_sides_apart(prompt, chosen, rejected):
    found = content_id(prompt, chosen, rejected)
    assert len(found) == 24
    assert set(found) <= set("0123456789abcdef")
    assert found == content_id(prompt, chosen, rejected)
    if chosen != rejected:
        assert found != content_id(prompt, rejected, chosen)


def test_content_id_of_messages_ignores_the_order_of_keys():
    here = [{"role": "user", "content": "hi"}]
    there = [{"content": "hi", "role": "user"}]
    assert content_id(here, "c", "r") == content_id(there, "c", "r")
    assert content_id(here, "c", "r") != content_id("hi", "c", "r")


def test_copies_get_numbers():
    first, second = ("p", "c", "r"), ("p", "c", "s")
    a, b = content_id(*first), content_id(*second)
    ids = example_ids([first, second, first, first, second])
    assert ids == [a, b, f"{a}-2", f"{a}-3", f"{b}-2"]


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("cd"), st.sampled_from("rs"))))
def test_example_ids_are_unique_and_the_same_set_in_any_order(triples):
    ids = example_ids(triples)
    assert len(set(ids)) == len(triples)
    assert sorted(example_ids(triples[::-1])) == sorted(ids)


@given(id_lists, st.randoms())
def test_dataset_hash_ignores_order_and_sees_every_id(ids, draw):
    shuffled = draw.sample(ids, len(ids))
    assert dataset_hash(shuffled) == dataset_hash(ids)
    if ids:
        assert dataset_hash(ids[1:]) != dataset_hash(ids)


def test_dataset_hash_keeps_ids_apart():
    assert dataset_hash(["ab", "c"]) != dataset_hash(["a", "bc"])


def test_stream_key_tells_parts_apart():
    parts = [(1, 23), (12, 3), ("1", 23), (1, "23"), (123,), ("123",), (1, 23, ""), ()]
    keys = [stream_key(*p) for p in parts]
    assert len(set(keys)) == len(parts)
    assert all(0 <= key < 2**128 for key in keys)


@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_uniforms_of_a_longer_stream_begin_alike(count):
    # Token t's number must not depend on how many tokens the batch has room for.
    long = uniforms(100, 42, 3, "id", "candidate", 0)
    np.testing.assert_array_equal(uniforms(count, 42, 3, "id", "candidate", 0), long[:count])
    assert long.dtype == np.float64
    assert ((long >= 0) & (long < 1)).all()


def test_uniforms_are_uniform_and_independent_between_streams():
    draws = np.stack([uniforms(2000, 0, 1, "id", "candidate", k) for k in range(10)])
    # Standard errors: 0.2887 / sqrt(20000) = 0.002 for the mean, 1 / sqrt(2000) = 0.022 below.
    assert abs(draws.mean() - 0.5) < 0.01
    correlations = np.corrcoef(draws)[np.triu_indices(10, 1)]
    assert np.abs(correlations).max() < 0.11


@given(id_lists, st.integers(), st.randoms())
def test_permutation_does_not_depend_on_the_order_of_ids(ids, seed, draw):
    order = permutation(ids, seed, 2, "order")
    assert sorted(order.tolist()) == list(range(len(ids)))
    shuffled = draw.sample(ids, len(ids))
    again = permutation(shuffled, seed, 2, "order")
    assert [ids[i] for i in order] == [shuffled[i] for i in again]


@given(id_lists, st.integers(), st.data())
def test_permutation_of_a_part_keeps_the_order_of_the_whole(ids, seed, data):
    whole = [ids[i] for i in permutation(ids, seed)]
    part = data.draw(st.lists(st.sampled_from(ids), unique=True) if ids else st.just([]))
    assert [part[i] for i in permutation(part, seed)] == [i for i in whole if i in part]


def test_permutation_changes_with_seed_round_and_purpose():
    ids = [f"{i:024x}" for i in range(50)]
    orders = {
        tuple(permutation(ids, seed, number, purpose).tolist())
        for seed in (0, 1)
        for number in (2, 3)
        for purpose in ("order", "prompts")
    }
    assert len(orders) == 8


def test_permutation_is_not_biased():
    # Each of 5 ids comes first about 1000 times of 5000; the standard deviation is 28.
    ids = ["a", "b", "c", "d", "e"]
    first = np.bincount([permutation(ids, seed)[0] for seed in range(5000)], minlength=5)
    assert np.abs(first - 1000).max() < 140
