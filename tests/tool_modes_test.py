"""The modes that run no network, through the command line."""

import json

import numpy as np
import support
import tifffile

from emseg_jax.data import volumes


def test_postprocessing_makes_objects_of_labels(tmp_path, capfd):
  labels = np.zeros((3, 20, 30), np.uint8)
  labels[:, 2:6, 2:6] = 255
  labels[1, 10:14, 20:29] = 255
  tifffile.imwrite(tmp_path / 'in.tif', labels, photometric='minisblack', metadata={'axes': 'ZYX'})
  arguments = ('--mode=postprocess', f'--input={tmp_path}/in.tif', f'--output={tmp_path}/out.zarr')
  assert support.run_main(*arguments) == 0
  assert '2 objects' in capfd.readouterr().err
  found = volumes.open_volume(str(tmp_path / 'out.zarr')).box((0, 0, 0), labels.shape)
  assert np.bincount(found.ravel()).tolist() == [labels.size - 48 - 36, 48, 36]
  assert len((tmp_path / 'out.zarr.csv').read_text().splitlines()) == 3
  assert support.run_main('--mode=postprocess', f'--input={tmp_path}/in.tif') == 2
  assert 'needs --output' in capfd.readouterr().err


def test_json_of_modes_without_a_run(capfd, tmp_path):
  assert support.run_main('--config=tiny', '--mode=check', '--json') == 0
  assert json.loads(capfd.readouterr().out)['ok'] is True
  bad = '--config.data.label_mapping={"0":0,"1":1}'
  assert support.run_main('--config=tiny', '--mode=check', '--json', '--quiet', bad) == 2
  said = capfd.readouterr()
  assert json.loads(said.out)['ok'] is False
  assert said.err.startswith('DataError: ')
  assert len(said.err.splitlines()) == 1
  labels = np.zeros((3, 20, 30), np.uint8)
  labels[:, 2:6, 2:6] = 1
  tifffile.imwrite(tmp_path / 'in.tif', labels, photometric='minisblack', metadata={'axes': 'ZYX'})
  arguments = ('--mode=postprocess', f'--input={tmp_path}/in.tif', f'--output={tmp_path}/out.tif')
  assert support.run_main(*arguments, '--json') == 0
  written = json.loads(capfd.readouterr().out)
  paths = {'written': f'{tmp_path}/out.tif', 'table': f'{tmp_path}/out.tif.csv'}
  assert written == {**paths, 'objects': 1}
  assert support.run_main('--mode=view', f'--input={tmp_path}/in.tif', '--json') == 2
  assert 'no result' in capfd.readouterr().err
