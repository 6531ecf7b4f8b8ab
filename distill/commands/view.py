"""`distill view RUN`: a local page to read a run's traces, also while it is going on."""

from __future__ import annotations

import argparse

from distill.commands.common import the_run
from distill.errors import UsageError


def main(verb: str, options: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from distill.view.server import Viewer

    if not options.target:
        raise UsageError("distill view needs a RUN", "distill ls --runs names them")
    viewer = Viewer(the_run(options), options.port)
    print(f"{viewer.url}   (for this machine alone; Ctrl-C ends it)", flush=True)
    try:
        viewer.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        viewer.server_close()
    return 0
