"""Who is asked for what while a program runs: run as `python tests/offline.py FILE`, it runs the commands that FILE lists."""

import json
import os
import sys
from pathlib import Path

OUTBOUND = "outbound:"
HERE = ("127.0.0.1", "::1", "localhost")


def watch(event, arguments):
    """An audit hook that says on standard error what leads out of this machine."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        place = arguments[0] if event.startswith("socket.get") else arguments[1]
        host = place[0] if isinstance(place, tuple) else place
        if str(host) not in HERE:
            os.write(2, f"{OUTBOUND} {event} {host}\n".encode())


def main(file):
    """Run every command in turn, each as its entry point does; the first that fails ends it."""
    sys.addaudithook(watch)
    from hardwon import cli

    for arguments in json.loads(Path(file).read_text()):
        os.write(2, f"== {' '.join(arguments)}\n".encode())
        sys.argv = ["hardwon", *arguments]
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                sys.exit(f"{arguments} ended with {end.code}")


if __name__ == "__main__":
    main(sys.argv[1])
