"""`resin serve`: store, application and uvicorn put together."""

from __future__ import annotations

import os
import secrets
import sys
import threading

from ..agent.wire import Batch
from ..config import Config
from ..store.base import SeriesStore
from ..store.duck import Store
from .ingest import Committer


def serve(config: Config, *, with_agent: bool = False) -> int:
    """Serve until interrupted; returns the exit code. `with_agent` samples this host as well."""
    import uvicorn

    from .app import create_app

    os.makedirs(config.state_dir, mode=0o700, exist_ok=True)
    with open_store(config) as store:
        app = create_app(store, config, source=series_source(config))
        sampling = LocalSampling(config, app.state.committer) if with_agent else None
        scheme = "https" if config.tls_cert else "http"
        host = f"[{config.listen_host}]" if ":" in config.listen_host else config.listen_host
        print(
            f"resin serves on {scheme}://{host}:{config.listen_port} (store {config.store_file})", flush=True
        )
        if sampling:
            sampling.start()
        uvicorn.run(
            app,
            host=config.listen_host,
            port=config.listen_port,
            ssl_certfile=config.tls_cert or None,
            ssl_keyfile=config.tls_key or None,
            log_level="warning",
            access_log=False,
            limit_concurrency=4096,
            timeout_keep_alive=75,  # longer than an agent's tick, so that its connection stays
            h11_max_incomplete_event_size=64 << 10,
            server_header=False,
        )
        if sampling:
            sampling.stop()
    return 0


class LocalSampling:
    """The agent's sampler as a thread of the service, for one machine on its own."""

    def __init__(self, config: Config, committer: Committer) -> None:
        from ..agent.agent import Sampler

        self.config = config
        self.committer = committer
        self.sampler = Sampler(config, state_dir=os.path.join(config.state_dir, "agent"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resin-sample", daemon=True)

    def start(self) -> None:
        """Begin sampling."""
        self._thread.start()

    def stop(self) -> None:
        """End after the tick in progress."""
        self._stop.set()

    def _run(self) -> None:
        session, seq = secrets.token_hex(8), 0
        while not self._stop.is_set():
            try:
                samples = tuple(self.sampler.sample())
                self.committer.submit(Batch(session, seq, self.sampler.host, samples)).result()
            except Exception as error:  # one failed tick must not end sampling
                print(f"resin serve: sampling this host: {error}", file=sys.stderr)
            seq += 1
            self._stop.wait(self.config.tick_s)


def open_store(config: Config) -> Store:
    """The embedded store with the configured bounds."""
    return Store(
        config.store_file,
        memory_bytes=config.store_memory_bytes,
        max_entities=config.max_entities,
        max_entities_per_host=config.max_entities_per_host,
    )


def series_source(config: Config) -> SeriesStore | None:
    """The Prometheus API that detection reads from, when one is configured."""
    if not config.prometheus_url:
        return None
    from ..store.prometheus import PrometheusStore

    return PrometheusStore(config.prometheus_url, token=config.prometheus_token)
