"""metrics.jsonl and TensorBoard events: what is written, and what a restart cuts back."""

import json
import struct

import pytest

from emseg_jax.errors import OutputError
from emseg_jax.metric_writer import MetricWriter, read_records


def write(folder, records, *, restored_step=0, evaluated_step=-1, tensorboard=False):
  writer = MetricWriter(
    folder, restored_step=restored_step, evaluated_step=evaluated_step, tensorboard=tensorboard
  )
  for step, scalars in records:
    writer.write(step, scalars)
  writer.close()


def training(step):
  return step, {'train/loss': 1.0 / step, 'opt/learning_rate': 0.01}


def evaluation(step):
  return step, {'validation/miou': step / 100, 'validation/iou/membrane': 0.5}


def kept(folder):
  """(step, is evaluation) of every record, in order."""
  records = read_records(folder / 'metrics.jsonl')
  return [(r['step'], 'validation/miou' in r) for r in records]


def read_events(folder):
  """(tag, step, value, wall time) of all event files, read from their bytes.

  A TFRecord is length u64, its checksum u32, the event, its checksum u32 (tensorflow.org).
  """
  from tensorboardX.proto import event_pb2

  found = []
  for path in sorted((folder / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      found += [
        (value.tag, event.step, value.simple_value, event.wall_time)
        for value in event.summary.value
      ]
      data = data[16 + length :]
  return found


def test_a_record_is_one_line_with_step_time_and_scalars(tmp_path):
  write(tmp_path, [training(4)])
  (record,) = read_records(tmp_path / 'metrics.jsonl')
  assert record.pop('wall_time') > 1.6e9  # seconds since 1970
  assert record == {'step': 4, 'train/loss': 0.25, 'opt/learning_rate': 0.01}


def test_a_record_can_be_read_while_training_goes_on(tmp_path):
  writer = MetricWriter(tmp_path, restored_step=0, evaluated_step=-1, tensorboard=False)
  writer.write(*training(2))
  assert kept(tmp_path) == [(2, False)]
  writer.close()


def test_a_restart_removes_training_records_after_the_restored_step(tmp_path):
  write(tmp_path, [training(step) for step in (2, 4, 6, 8)])
  write(tmp_path, [training(6)], restored_step=4)
  assert kept(tmp_path) == [(2, False), (4, False), (6, False)]


def test_a_restart_removes_evaluations_that_the_restored_state_does_not_know(tmp_path):
  records = [training(4), evaluation(4), training(8), evaluation(8), training(12)]
  write(tmp_path, records)
  # Saved at step 8 before its evaluation had finished: it will be evaluated again.
  write(tmp_path, [], restored_step=8, evaluated_step=4)
  assert kept(tmp_path) == [(4, False), (4, True), (8, False)]
  # Saved behind the evaluation of step 8: nothing to do again.
  write(tmp_path, [evaluation(8)], restored_step=8, evaluated_step=4)
  write(tmp_path, [], restored_step=8, evaluated_step=8)
  assert kept(tmp_path) == [(4, False), (4, True), (8, False), (8, True)]


def age_events(folder):
  """Event files are named by the second in which they begin: as if that were long ago."""
  for i, path in enumerate(sorted((folder / 'tensorboard').iterdir())):
    path.rename(path.with_name(f'events.out.tfevents.100000000{i}.host'))


def test_a_fresh_start_removes_everything(tmp_path):
  write(tmp_path, [training(2), evaluation(2)], tensorboard=True)
  age_events(tmp_path)
  write(tmp_path, [], tensorboard=True)
  assert kept(tmp_path) == []
  assert read_events(tmp_path) == []


def test_the_line_that_a_crash_cut_off_is_left_out_and_removed(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  write(tmp_path, [training(2), training(4)])
  whole = path.read_bytes()
  for cut in (1, 2, 20, len(whole.splitlines()[1])):
    path.write_bytes(whole[:-cut])
    # Without its newline alone the last line is still complete.
    assert [r['step'] for r in read_records(path)] == ([2, 4] if cut == 1 else [2])
  path.write_bytes(whole[:-5])
  write(tmp_path, [training(4)], restored_step=4)
  assert kept(tmp_path) == [(2, False), (4, False)]
  assert all(json.loads(line) for line in path.read_text().splitlines())


def test_no_file_holds_no_records(tmp_path):
  assert read_records(tmp_path / 'metrics.jsonl') == []


def test_tensorboard_shows_the_same_numbers(tmp_path):
  write(tmp_path, [training(2), evaluation(2)], tensorboard=True)
  events = read_events(tmp_path)
  records = read_records(tmp_path / 'metrics.jsonl')
  expected = [
    (tag, record['step'], pytest.approx(value), pytest.approx(record['wall_time']))
    for record in records
    for tag, value in record.items()
    if '/' in tag
  ]
  assert events == expected
  assert len(events) == 4


def test_tensorboard_is_cut_back_as_well(tmp_path):
  write(tmp_path, [training(step) for step in (2, 4, 6, 8)], tensorboard=True)
  times = {step: time for _, step, _, time in read_events(tmp_path)}
  age_events(tmp_path)
  write(tmp_path, [training(6)], restored_step=4, tensorboard=True)
  events = read_events(tmp_path)
  assert [step for tag, step, *_ in events if tag == 'train/loss'] == [2, 4, 6]
  # What is kept stays where it was on the time axis.
  assert {step: time for _, step, _, time in events if step <= 4} == {2: times[2], 4: times[4]}


def test_without_tensorboard_there_is_no_folder(tmp_path):
  write(tmp_path, [training(2)])
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_score_that_does_not_exist_is_null_and_not_drawn(tmp_path):
  write(tmp_path, [(2, {'validation/miou': 0.5, 'validation/iou/rare': None})], tensorboard=True)
  assert read_records(tmp_path / 'metrics.jsonl')[0]['validation/iou/rare'] is None
  assert [tag for tag, *_ in read_events(tmp_path)] == ['validation/miou']


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
  with pytest.raises(OutputError, match=r'nowhere/metrics\.jsonl: cannot be written'):
    write(tmp_path / 'nowhere', [])
