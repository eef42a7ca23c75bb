"""What values in label files mean, and which are refused."""

import numpy as np
import pytest
from data_support import open_split, plain, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax.config import Source
from emseg_jax.data import pairs
from emseg_jax.errors import DataError


def mapped(raw, *, classes=2, mapping=None, ignore_value=None):
  return pairs.map_labels(
    np.asarray(raw),
    num_classes=classes,
    label_mapping=mapping,
    ignore_value=ignore_value,
    name='label.png',
  )


def test_without_a_mapping_values_are_class_indices():
  out = mapped([[0, 1], [2, 1]], classes=3)
  assert out.dtype == np.uint8
  np.testing.assert_array_equal(out, [[0, 1], [2, 1]])


def test_a_mapping_turns_file_values_into_classes_many_to_one():
  out = mapped([[0, 32, 64, 255]], mapping={0: 1, 32: 1, 64: 1, 255: 0})
  np.testing.assert_array_equal(out, [[1, 1, 1, 0]])


def test_the_ignored_value_becomes_255():
  out = mapped([[0, 1, 99]], ignore_value=99)
  np.testing.assert_array_equal(out, [[0, 1, pairs.IGNORED]])
  out = mapped([[7, -1]], mapping={7: 1}, ignore_value=-1)
  np.testing.assert_array_equal(out, [[1, 255]])


@pytest.mark.parametrize('dtype', [bool, np.int8, np.uint16, np.int32, np.uint64, np.float32])
def test_any_type_that_holds_whole_numbers_is_a_label(dtype):
  out = mapped(np.array([[0, 1], [1, 0]], dtype))
  assert out.dtype == np.uint8
  np.testing.assert_array_equal(out, [[0, 1], [1, 0]])


@settings(max_examples=50, deadline=None)
@given(
  st.dictionaries(st.integers(-(2**31), 2**31 - 1), st.integers(0, 254), min_size=1, max_size=9),
  st.data(),
)
def test_a_mapping_is_applied_value_by_value(mapping, data):
  values = st.lists(st.sampled_from(sorted(mapping)), min_size=6, max_size=6)
  raw = np.array(data.draw(values)).reshape(2, 3)
  expected = [[mapping[int(v)] for v in row] for row in raw]
  np.testing.assert_array_equal(mapped(raw, classes=255, mapping=mapping), expected)


def test_a_value_outside_the_mapping_is_named_with_the_allowed_ones():
  with pytest.raises(DataError, match=r'label\.png: label value 7 .*allowed: \[0, 1, 99\]'):
    mapped([[0, 7]], ignore_value=99)
  with pytest.raises(DataError, match=r'label value 2, 3, 4, 5, 6, \.\.\. is not'):
    mapped([range(9)])


def test_a_mask_of_0_and_255_is_answered_with_the_mapping_it_needs():
  with pytest.raises(DataError, match=r'set data\.label_mapping to \{"0": 0, "255": 1\}'):
    mapped([[0, 255]])
  # An all-foreground section says the same of the data set.
  with pytest.raises(DataError, match=r'set data\.label_mapping'):
    mapped([[255, 255]])
  for raw, options in [
    ([[0, 254]], {}),
    ([[0, 1, 255]], {}),
    ([[0, 255]], {'classes': 3}),
    ([[0, 255]], {'mapping': {0: 0}}),
  ]:
    with pytest.raises(DataError) as caught:
      mapped(raw, **options)
    assert 'set data.label_mapping' not in str(caught.value)


def test_colour_and_fractions_are_no_labels():
  with pytest.raises(DataError, match=r'label\.png: the label has 3 colour channels'):
    mapped(np.zeros((2, 2, 3), np.uint8))
  with pytest.raises(DataError, match=r'label\.png: the label has fractional values'):
    mapped(np.array([[0.0, 0.5]]))


def test_a_bad_label_in_a_folder_names_the_folder_and_the_section(tmp_path):
  split = open_split(
    Source(
      images=write_folder(tmp_path / 'images', {'a': plain(0), 'b': plain(0)}),
      labels=write_folder(tmp_path / 'labels', {'a': plain(0), 'b': plain(3)}),
    )
  )
  split.label(0)
  with pytest.raises(DataError, match=r'labels, b: label value 3'):
    split.label(1)


def test_labels_of_a_split_are_mapped_with_the_configuration(tmp_path):
  label = np.array([[0, 255, 7], [255, 0, 7]], np.uint8)
  folder = write_folder(tmp_path / 'x', {'a': label})
  split = open_split(Source(images=folder, labels=folder), mapping={0: 1, 255: 0}, ignore_value=7)
  np.testing.assert_array_equal(split.label(0), [[1, 0, 255], [0, 1, 255]])
