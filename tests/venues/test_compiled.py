"""Constructing a venue's decoder compiles whatever its messages need: none of them waits for a compiler."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

PROBE = '''
import importlib, json, sys
from decimal import Decimal
import numpy as np
from numba.core.registry import CPUDispatcher
from hftlab.core.instruments import Instrument
from hftlab.core.rows import ROW

venue, symbol = sys.argv[1:]
market = importlib.import_module(f"hftlab.venues.{venue}.market")
connection = importlib.import_module(f"hftlab.venues.{venue}.connection")
seeds = importlib.import_module(f"hftlab.testing.targets_{venue}")
instrument = Instrument(3, venue, symbol, Decimal("0.01"), Decimal("0.00000001"))

def compiled():
    """How many signatures each kernel has, of every hftlab module there is."""
    return {
        f"{name}.{key}": len(kernel.overloads)
        for name, module in sorted(sys.modules.items()) if name.startswith("hftlab.")
        for key, kernel in vars(module).items() if isinstance(kernel, CPUDispatcher) and kernel.__module__ == name
    }

def messages():
    """Every message of the fuzz targets, whatever its decoder."""
    found = []
    for make in seeds.TARGETS.values():
        found += make()[1]
    return found

frames = messages()
kinds = [{}]
if venue == "kraken":
    kinds = [{"version": 1}, {"version": 2}]
if venue == "coinbase":
    kinds = [{"channel": "level2"}, {"channel": "full"}]
connections = [connection.MarketConnection([instrument], **kind) for kind in kinds]
if venue == "coinbase":
    connections.append(connection.AdvancedConnection([instrument]))
outs = [np.zeros(one.rows_needed, ROW) for one in connections]
before, rows = compiled(), 0
for one, out in zip(connections, outs):
    one.on_open(1)
    one.subscribe_requests([3])
    for frame in frames:
        rows += one.on_frame(frame, 2, out)
        one.poll(3, out)
        for wanted in one.wants_snapshot():
            for payload in frames:
                rows += one.on_snapshot(wanted, payload, 4, out)
    one.on_close(5, out)
decoder = connections[0].decoder
if venue == "binance":  # all messages at once, in every form
    from hftlab.kernels.ladder import Ladders

    books = Ladders([instrument])
    before = compiled()
    ends = np.cumsum([0] + [len(frame) for frame in frames]).astype(np.int64)
    stamps, facts = np.zeros(len(frames), np.int64), np.zeros((len(frames), 5), np.int64)
    for text in (b"".join(frames), np.frombuffer(b"".join(frames), np.uint8)):
        decoder.decode_batch(text, ends, stamps, outs[0])
        decoder.decode_batch(text, ends, stamps, outs[0], facts=facts, books=books)
    for frame in frames:
        decoder.decode_to_book(frame, 0, outs[0], books)
changed = {name: n for name, n in compiled().items() if n != before.get(name, 0)}
print(json.dumps({"kernels": len(before), "rows": rows, "changed": changed}))
'''


@pytest.mark.parametrize(("venue", "symbol"), [("binance", "BTCUSDT"), ("coinbase", "BTC-USD"), ("kraken", "BTC/USD")])
def test_no_message_compiles_a_kernel_after_construction(venue: str, symbol: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, venue, symbol], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["kernels"] > 10 and told["rows"] > 0
    assert told["changed"] == {}
