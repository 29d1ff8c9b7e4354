"""Conditioning: rows of different length can be cut apart, put together and moved without any of them changing."""

import pytest
import torch

from dreambooth.families import Conditioning

ROWS = [torch.arange(1.0, 1 + 2 * length).view(length, 2) for length in (3, 1, 4)]


def of_different_length() -> Conditioning:
    return Conditioning.from_rows(states=ROWS, pooled=[torch.full((5,), float(i)) for i in range(3)])


def assert_rows(conditioning: Conditioning, *expected: int) -> None:
    """Each row is the one it was, and what lies behind it is 0."""
    rows = conditioning.rows("states")
    assert len(rows) == len(conditioning) == len(expected)
    for row, whole, number in zip(rows, conditioning["states"], expected, strict=True):
        assert torch.equal(row, ROWS[number])
        assert not whole[len(row) :].any()
    assert torch.equal(conditioning["pooled"][:, 0], torch.tensor([float(number) for number in expected]))


def test_rows_of_different_length_are_padded_behind() -> None:
    conditioning = of_different_length()
    assert conditioning["states"].shape == (3, 4, 2)
    assert_rows(conditioning, 0, 1, 2)
    assert conditioning.mask("states").tolist() == [
        [True, True, True, False],
        [True, False, False, False],
        [True, True, True, True],
    ]
    assert conditioning.mask("pooled").all()


def test_selected_rows_keep_their_order_and_drop_padding_that_none_needs() -> None:
    conditioning = of_different_length()
    assert_rows(conditioning.select([2, 0, 2]), 2, 0, 2)
    short = conditioning.select([1, 0])
    assert short["states"].shape[1] == 3
    assert_rows(short, 1, 0)
    assert conditioning.select([2, 2]).mask("states").all()


def test_what_was_cut_apart_is_put_together_again() -> None:
    whole = of_different_length()
    again = Conditioning.cat([whole.select([0, 1]), whole.select([2])])
    assert torch.equal(again["states"], whole["states"])
    assert again.lengths == whole.lengths
    assert_rows(Conditioning.cat([whole.select([1]), whole]), 1, 0, 1, 2)


def test_rows_of_one_length_have_no_lengths_and_are_the_tensors_they_were() -> None:
    states = torch.randn(4, 7, 3)
    conditioning = Conditioning({"states": states})
    assert conditioning.lengths == {}
    assert torch.equal(conditioning.select([3, 1])["states"], states[[3, 1]])
    assert torch.equal(Conditioning.cat([conditioning, conditioning])["states"], torch.cat([states, states]))


def test_a_number_format_is_for_numbers_with_a_point() -> None:
    conditioning = Conditioning({"states": torch.randn(2, 3), "time_ids": torch.tensor([[512, 0], [64, 1]])})
    half = conditioning.to(dtype=torch.bfloat16)
    assert (half["states"].dtype, half["time_ids"].dtype) == (torch.bfloat16, torch.int64)
    moved = of_different_length().to(torch.device("meta"))
    assert moved["states"].is_meta
    assert moved.lengths == of_different_length().lengths


def test_fields_of_the_same_samples_are_joined() -> None:
    joined = of_different_length() | Conditioning({"time_ids": torch.ones(3, 6)})
    assert [*joined] == ["states", "pooled", "time_ids"]
    assert_rows(joined.select([2, 1]), 2, 1)


def test_gradients_go_back_to_the_row_that_was_selected_twice() -> None:
    states = torch.ones(2, 3, requires_grad=True)
    Conditioning({"states": states}).select([0, 0, 1])["states"].sum().backward()
    assert states.grad is not None
    assert states.grad[:, 0].tolist() == [2, 1]


def test_a_field_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        of_different_length()["time_ids"]
