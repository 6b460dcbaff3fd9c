"""A feed process of ``hftlab bench pipeline``: our own connection and ring, with frames that are in memory already.

Says ``{"ready": true}`` when its frames are there; for every line on stdin it sends them all through a fresh connection
into its ring and answers with the rows it has sent and how often it found the ring full.
"""

from __future__ import annotations

import json
import os
import sys

from hftlab.bench.pipeline import decoded, frames_of
from hftlab.feeds.ring import Ring

if __name__ == "__main__":
    feed, n, memory_fd, event_fd = map(int, sys.argv[1:])
    ring, (snapshot, frames), parent = Ring.attach(memory_fd, event_fd), frames_of(feed, n), os.getppid()

    def still() -> None:
        if os.getppid() != parent:
            os._exit(1)

    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        sent = 0
        for rows in decoded(feed, snapshot, frames):
            ring.put(rows, still)
            sent += len(rows)
        print(json.dumps({"rows": sent, "blocked": ring.blocked}), flush=True)
