"""How answers end, and how sampled ones are made to end alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sera_plugin.sampling.settings import common_ending, ending_of, finish

EOS, EOT, NEWLINE, SPACE = 100, 101, 50, 51
SPECIAL, BLANK = {EOS, EOT}, {NEWLINE, SPACE}
answers = st.lists(st.sampled_from([1, 2, 3, NEWLINE, SPACE, EOS, EOT]), max_size=12)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([1, 2, EOT], (EOT,)),
        ([1, 2, EOT, NEWLINE], (EOT, NEWLINE)),
        ([1, 2, NEWLINE, EOT, EOS], (EOT, EOS)),  # white space before the ending is the answer's
        ([1, EOT, 2, NEWLINE], ()),
        ([1, 2, NEWLINE, SPACE], ()),
        ([EOT], (EOT,)),
        ([], ()),
    ],
)
def test_ending_by_hand(answer, expected):
    assert ending_of(answer, SPECIAL, BLANK) == expected


@given(answers)
def test_ending_is_the_longest_tail_that_may_be_one(answer):
    ending = ending_of(answer, SPECIAL, BLANK)
    assert tuple(answer[len(answer) - len(ending) :]) == ending

    def may_be(tail):
        return not tail or (tail[0] in SPECIAL and set(tail) <= SPECIAL | BLANK)

    assert may_be(ending)
    assert not any(may_be(answer[start:]) for start in range(len(answer) - len(ending)))
    assert ending_of(ending, SPECIAL, BLANK) == ending


def test_common_ending_is_the_most_frequent_one():
    rows = [[1, EOT], [2, EOT, NEWLINE], [3, EOT, NEWLINE], [1]]
    assert common_ending(rows, SPECIAL, BLANK) == (EOT, NEWLINE)


def test_common_ending_breaks_ties_by_length_and_then_by_id():
    assert common_ending([[1, EOT], [2, EOT, NEWLINE]], SPECIAL, BLANK) == (EOT, NEWLINE)
    assert common_ending([[1, EOT], [2, EOS]], SPECIAL, BLANK) == (EOS,)


@given(st.lists(answers.map(lambda a: [*a, 1, EOT]), min_size=1), st.randoms())
def test_common_ending_does_not_depend_on_the_order(rows, draw):
    assert common_ending(draw.sample(rows, len(rows)), SPECIAL, BLANK) == (EOT,)


@pytest.mark.parametrize("rows", [[], [[1], [2], [3, EOT]], [[1, NEWLINE]]])
def test_answers_that_never_stop_are_refused(rows):
    with pytest.raises(ValueError, match="don't end with a special token"):
        common_ending(rows, SPECIAL, BLANK)


def test_finish_by_hand():
    assert finish([1, 2, EOS, 3, EOS], (EOT, NEWLINE), SPECIAL) == ((1, 2, EOT, NEWLINE), True)
    assert finish([EOT, 7], (EOT, NEWLINE), SPECIAL) == ((EOT, NEWLINE), True)
    assert finish([1, 2], (EOT, NEWLINE), SPECIAL) == ((1, 2), False)
    assert finish([], (EOT,), SPECIAL) == ((), False)


@given(answers)
def test_a_finished_answer_ends_like_the_offline_ones(sampled):
    ending = (EOT, NEWLINE)
    tokens, finished = finish(sampled, ending, SPECIAL)
    assert finished == bool(SPECIAL & set(sampled))
    if not finished:
        assert tokens == tuple(sampled)
        return
    assert tokens[-2:] == ending
    assert not SPECIAL & set(tokens[:-2])
    assert list(tokens[:-2]) == sampled[: len(tokens) - 2]
    assert ending_of(tokens, SPECIAL, BLANK) == ending
    assert finish(tokens, ending, SPECIAL) == (tokens, True)
