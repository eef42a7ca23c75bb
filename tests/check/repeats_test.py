"""Copies and near-copies are told from neighbouring and from unrelated sections."""

import io

import numpy as np
import pytest
from check_support import found, message, report, source, tissue, volume, write
from PIL import Image

from emseg_jax.check import read, repeats

SIZE = (120, 120)


def jpeg(image):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'JPEG', quality=60)
  return np.asarray(Image.open(buffer))


def with_copy(folder, change, *, size=SIZE):
  """Validation section 1 is a changed copy of training section 2."""
  images, labels = tissue(4, size)
  others, other_labels = (a.copy() for a in tissue(3, size, seed=5))
  others[1], other_labels[1] = change(images[2]), change(labels[2])
  write(folder / 'train', images, labels)
  write(folder / 'val', others, other_labels)
  return report(source(folder / 'train'), source(folder / 'val'), labels={'other': 0})


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (jpeg, 'near-copy of'),
    (lambda a: (a * 0.7 + 40).astype(np.uint8), 'near-copy of'),
    (lambda a: 255 - a, 'near-copy of'),
    (lambda a: (255 * (a / 255) ** 0.7).astype(np.uint8)[:, ::-1], 'flipped left to right'),
    (lambda a: jpeg(a)[::-1], 'flipped top to bottom'),
    (lambda a: np.rot90(jpeg(a)), 'turned by 90 degrees'),
    (lambda a: a.T, 'transposed'),
  ],
)
def test_near_copy_in_another_split_is_leakage(tmp_path, change, words):
  result = with_copy(tmp_path, change)
  assert found(result, 'leakage', 'repeated', 'neighbours') == [('error', 'validation')]
  text = message(result, 'leakage')
  assert words in text
  assert 'val/images/01.png' in text
  assert 'train/images/02.png of train' in text
  assert result.problems[0].places == (('validation', 1), ('train', 2))


def test_flipped_copies_of_odd_size_are_found_too(tmp_path):
  result = with_copy(tmp_path, lambda a: a[::-1, ::-1], size=(121, 131))
  assert found(result, 'leakage') == [('error', 'validation')]


def test_near_copy_within_a_split_is_a_warning(tmp_path):
  images, labels = (a.copy() for a in tissue(4, SIZE))
  images[3], labels[3] = images[0] // 2, labels[0]
  write(tmp_path, images, labels)
  assert found(report(source(tmp_path)), 'leakage', 'repeated') == [('warning', 'train')]


def test_unrelated_images_are_neither_copies_nor_neighbours(tmp_path):
  write(tmp_path / 'train', *tissue(5, SIZE))
  write(tmp_path / 'val', *tissue(3, SIZE, seed=5))
  result = report(source(tmp_path / 'train'), source(tmp_path / 'val'))
  assert found(result, 'leakage', 'repeated', 'neighbours') == []


def test_neighbouring_sections_in_another_split_are_a_note(tmp_path):
  images, labels = volume((12, 120, 120))
  write(tmp_path, images, labels)
  block = report(source(tmp_path, slices=':8'), source(tmp_path, slices='8:'))
  assert found(block, 'leakage', 'neighbours') == [('note', 'validation')]
  far = report(source(tmp_path, slices=':2'), source(tmp_path, slices='10:'))
  assert found(far, 'leakage', 'neighbours') == []
  mixed = report(source(tmp_path, slices='::2'), source(tmp_path, slices='1::2'))
  assert found(mixed, 'leakage', 'neighbours') == [('note', 'validation')]
  assert '6 of 6 sections of validation' in message(mixed, 'neighbours')


def test_correlations_of_all_pairs_are_those_of_numpy():
  rng = np.random.default_rng(0)
  details = [rng.normal(size=(6, 6)) for _ in range(3)] + [rng.normal(size=(4, 6))]
  centred = [d - d.mean() for d in details]
  seen = set()
  for what, rows, columns, values in repeats.correlate(centred):
    if what == repeats.AS_IS:
      for y, a in enumerate(rows):
        for x, b in enumerate(columns):
          seen.add((int(a), int(b)))
          expected = np.corrcoef(details[a].ravel(), details[b].ravel())[0, 1]
          assert values[y, x] == pytest.approx(expected, abs=1e-5)
  assert seen == {(a, b) for a in range(3) for b in range(3)} | {(3, 3)}


def test_large_split_is_sampled_and_says_so_but_overlaps_are_still_found(tmp_path, monkeypatch):
  monkeypatch.setattr(read, 'MOST_SECTIONS', 3)
  write(tmp_path, *tissue(6))
  result = report(source(tmp_path), source(tmp_path, slices='1:2'))
  assert (result.splits[0].sections, result.splits[0].read) == (6, 3)
  assert found(result, 'sampled') == [('note', 'train')]
  assert '3 of 6 sections were not read' in message(result, 'sampled')
  assert 'images/01.png: is also used in train' in message(result, 'leakage')  # 0, 2 and 5 are read


def test_sections_are_read_up_to_a_number_of_pixels(monkeypatch):
  monkeypatch.setattr(read, 'MOST_PIXELS', 2000)
  monkeypatch.setattr(read, 'FEWEST', 2)
  assert read._choose([100] * 50) == read.spread(50, 20)
  assert read._choose([5000] * 50) == [0, 49]
  assert read._choose([100] * 5) == [0, 1, 2, 3, 4]
  assert read.spread(1, 8) == [0]
