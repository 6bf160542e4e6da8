"""`condinst serve`."""

import argparse

from condinst_infer.cli import options
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.errors import require
from condinst_infer.pipeline import load
from condinst_infer.serving.http.limits import Limits


def serve(args: argparse.Namespace) -> int:
    """0 when a signal has ended it and all requests in flight are answered."""
    for module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        require(module, "serve")
    from condinst_infer.serving.http.app import Door
    from condinst_infer.serving.http.server import Server, bound

    workers = options.workers(args, options.MAX_WORKERS * args.batch)
    with bound(args.host, args.port) as listener:
        host, port = listener.getsockname()[:2]
        with load(
            args.model,
            **options.runtime(args),
            workers=workers,
            max_pixels=args.max_pixels,
            max_batch=args.batch,
        ) as pipeline:
            limits = Limits(
                max_bytes=args.max_bytes,
                max_pixels=args.max_pixels,
                queue=args.queue,
                timeout_s=args.timeout,
                workers=workers,
                batch=max(args.batch, pipeline.metadata.batch or 1),
                wait_ms=args.wait_ms,
            )
            door = Door(pipeline, file_sha256(args.model), limits)
            host = f"[{host}]" if ":" in host else host
            line = f"{pipeline.config.name} is at http://{host}:{port} (workers: {workers})"
            try:
                Server(door, lambda: print(line, flush=True)).serve_until_signal(listener)
            finally:
                door.close()
    return 0
