"""A page in headless Chromium: navigation, pictures, and errors on its console.

WebGL 2 is done by software, and nothing but 127.0.0.1 can be reached.
"""

import asyncio
import base64
import contextlib
import io
import json
import shutil
import subprocess
import urllib.request

import numpy as np
from PIL import Image

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
FLAGS = (
  *('--headless', '--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader'),
  *('--enable-unsafe-swiftshader', '--remote-debugging-port=0', '--window-size=1200,800'),
  '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
)


@contextlib.asynccontextmanager
async def open_page(profile):
  """A browser with one empty page; `profile` is a folder for it."""
  from tornado import websocket  # comes with neuroglancer

  command = [CHROMIUM, *FLAGS, f'--user-data-dir={profile}', 'about:blank']
  with subprocess.Popen(command, stderr=subprocess.DEVNULL) as browser:
    try:
      port_file = profile / 'DevToolsActivePort'
      while not (port_file.exists() and '\n' in port_file.read_text()):
        await asyncio.sleep(0.1)
      port = port_file.read_text().split()[0]
      with urllib.request.urlopen(f'http://127.0.0.1:{port}/json/list') as reply:
        address = next(t['webSocketDebuggerUrl'] for t in json.load(reply) if t['type'] == 'page')
      page = Page(await websocket.websocket_connect(address, max_message_size=2**26))
      for domain in ('Runtime', 'Log', 'Page'):
        await page.call(f'{domain}.enable')
      yield page
    finally:
      browser.terminate()


class Page:
  """A page of a browser; commands and events of its DevTools protocol are JSON on a websocket."""

  def __init__(self, socket):
    self._socket, self._count, self._events = socket, 0, []

  async def _receive(self):
    message = json.loads(await self._socket.read_message())
    if 'method' in message:
      self._events.append(message)
    return message

  async def call(self, method, **parameters):
    self._count += 1
    message = {'id': self._count, 'method': method, 'params': parameters}
    await self._socket.write_message(json.dumps(message))
    while (reply := await self._receive()).get('id') != self._count:
      pass
    assert 'error' not in reply, (method, reply['error'])
    return reply['result']

  async def go(self, url):
    """Opens an address and waits until the page is loaded."""
    before = len(self._events)
    await self.call('Page.navigate', url=url)
    while 'Page.loadEventFired' not in [e['method'] for e in self._events[before:]]:
      await self._receive()

  async def picture(self):
    """uint8 [Y, X, 3]."""
    data = (await self.call('Page.captureScreenshot', format='png'))['data']
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB'))

  def errors(self):
    """Exceptions and errors on the console, but for the page's missing icon."""
    found = []
    for event in self._events:
      method, parameters = event['method'], event['params']
      if method == 'Log.entryAdded' and parameters['entry']['level'] == 'error':
        entry = parameters['entry']
        found += [entry] * (not entry.get('url', '').endswith('/favicon.ico'))
      elif method == 'Runtime.exceptionThrown' or parameters.get('type') == 'error':
        found.append(parameters)
    return found
