"""MLflow's own server in a thread of this process: it goes away and comes back on its port."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
from mlflow.environment_variables import MLFLOW_TRACKING_URI
from mlflow.server import app, handlers
from mlflow.server.constants import (
    ARTIFACT_ROOT_ENV_VAR,
    ARTIFACTS_DESTINATION_ENV_VAR,
    BACKEND_STORE_URI_ENV_VAR,
    SERVE_ARTIFACTS_ENV_VAR,
)
from mlflow.tracking._tracking_service import utils
from werkzeug.serving import BaseWSGIServer, make_server


class Server:
    """An MLflow server on a database of `home` (mlflow.db)."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        database = f"sqlite:///{home}/mlflow.db"
        for name, value in (
            (BACKEND_STORE_URI_ENV_VAR, database),
            # The server makes its database the default of its process, which is this one.
            (MLFLOW_TRACKING_URI.name, database),
            (ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/"),
            (ARTIFACTS_DESTINATION_ENV_VAR, str(home / "served")),
            (SERVE_ARTIFACTS_ENV_VAR, "true"),
        ):
            patch.setitem(os.environ, name, value)
        for name in ("_tracking_store", "_model_registry_store", "_artifact_repo"):
            patch.setattr(handlers, name, None)  # each test has a database of its own
        patch.setattr(utils, "_tracking_uri", None)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.port = 0
        self._server: BaseWSGIServer | None = None
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, after the first time on the port of the first."""
        self._server = make_server("127.0.0.1", self.port, app, threaded=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections from now on; whoever is connected is heard out."""
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None
