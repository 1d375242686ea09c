"""`grpo-tir watch`: serve the report of a running job."""

import argparse
from pathlib import Path

from grpo_tir.errors import OutputError, UserError
from grpo_tir.report.serve import make_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory (train.output_dir)")
    parser.add_argument("--port", type=int, default=8008, help="on 127.0.0.1; 0: any that is free (default 8008)")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    for path in args.runs:
        if not path.is_dir():
            raise UserError(f"{path} is not a run directory: give the output_dir of a training run")
    try:
        server = make_server(args.runs, args.port)
    except OSError as error:
        raise OutputError(f"cannot listen on port {args.port}: {error.strerror}; choose another --port") from None
    print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("stopped watching; the run goes on")
    finally:
        server.server_close()
    return 0
