"""Labels out of place, on synthetic tissue whose labels are exact."""

import numpy as np
import pytest
from check_support import found, message, report, source, tissue, volume, write

SQUARE, LONG = (96, 96), (96, 128)


def check_moved(folder, images, labels, **options):
  write(folder, images, labels)
  return report(source(folder), classes=('cytoplasm', 'membrane', 'mitochondrion'), **options)


@pytest.mark.parametrize('size', [SQUARE, LONG])
def test_labels_in_place_are_fine_and_have_a_score(tmp_path, size):
  result = check_moved(tmp_path, *tissue(5, size))
  assert found(result, 'misaligned') == []
  assert result.splits[0].label_fit > 0.1  # chance is below 0.01
  assert max(map(abs, result.splits[0].best_shift)) <= 1


@pytest.mark.parametrize(('shift', 'words'), [((8, 0), 'px up'), ((-6, 9), 'px down and')])
def test_shifted_labels_are_found_with_their_shift(tmp_path, shift, words):
  images, labels = tissue(5)
  result = check_moved(tmp_path, images, np.roll(labels, shift, (1, 2)))
  assert found(result, 'misaligned') == [('warning', 'train')]
  assert words in message(result, 'misaligned')
  assert np.abs(np.add(result.splits[0].best_shift, shift)).max() <= 1


def test_labels_a_pixel_or_two_beside_the_edge_are_fine(tmp_path):
  images, labels = tissue(5)
  assert not found(check_moved(tmp_path, images, np.roll(labels, (2, -2), (1, 2))), 'misaligned')


@pytest.mark.parametrize(
  ('turn', 'words'),
  [
    (lambda a: a[:, ::-1], 'flipped top to bottom'),
    (lambda a: a[:, :, ::-1], 'flipped left to right'),
    (lambda a: a[:, ::-1, ::-1], 'turned by 180 degrees'),
    (lambda a: a.swapaxes(1, 2), 'transposed (y and x swapped)'),
    (lambda a: np.rot90(a, 1, (1, 2)), 'turned by 90 degrees clockwise'),
    (lambda a: np.rot90(a, -1, (1, 2)), 'turned by 90 degrees counter-clockwise'),
    (lambda a: np.rot90(a, 2, (1, 2)).swapaxes(1, 2), 'transposed and turned by 180 degrees'),
  ],
)
def test_turned_labels_are_an_error_that_says_how_to_turn_them_back(tmp_path, turn, words):
  images, labels = tissue(4)
  result = check_moved(tmp_path, images, turn(labels))
  assert found(result, 'misaligned') == [('error', 'train')]
  assert f'when {words} (score' in message(result, 'misaligned')
  assert result.problems[0].places == (('train', 0), ('train', 1))


def test_labels_of_other_images_are_found(tmp_path):
  images, _ = tissue(5)
  _, labels = tissue(5, seed=9)
  result = check_moved(tmp_path, images, labels)
  assert found(result, 'misaligned') == [('warning', 'train')]
  assert 'do they belong to these images?' in message(result, 'misaligned')


def test_one_shifted_and_one_foreign_label_are_named(tmp_path):
  images, labels = (a.copy() for a in tissue(6, (160, 160)))
  labels[2] = np.roll(labels[2], 9, axis=0)
  labels[5] = tissue(1, (160, 160), seed=9)[1][0]
  result = check_moved(tmp_path, images, labels)
  shifted, foreign = [p for p in result.problems if p.kind == 'misaligned']
  assert 'labels/02.png: fits its image better when moved by' in shifted.message
  assert 'labels/05.png: does not fit its image' in foreign.message
  assert (shifted.places, foreign.places) == ((('train', 2),), (('train', 5),))


@pytest.mark.parametrize(
  ('order', 'words'),
  [
    (lambda a: np.roll(a, -1, axis=0), 'fit the next image better'),
    (lambda a: np.roll(a, 1, axis=0), 'fit the previous image better'),
    (lambda a: a[::-1], 'from the other end of the volume better'),
  ],
)
def test_labels_in_another_order_than_the_images_are_found(tmp_path, order, words):
  images, labels = volume((24, 96, 96))
  result = check_moved(tmp_path, images[::4], order(labels[::4]))
  assert found(result, 'misaligned') == [('warning', 'train')]
  assert words in message(result, 'misaligned')


def test_a_volume_in_order_is_fine(tmp_path):
  images, labels = volume((24, 96, 96))
  assert not found(check_moved(tmp_path, images[::4], labels[::4]), 'misaligned')


def test_what_is_ignored_does_not_count(tmp_path):
  images, labels = tissue(5)
  few = np.full_like(labels, 9)
  few[:, :2, :2] = labels[:, :2, :2]
  result = check_moved(tmp_path, images, few, ignore_value=9)
  assert found(result, 'misaligned') == []
  assert result.splits[0].label_fit is None
