"""nginx, which a test runs in a directory of its own."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from pathlib import Path

from tests.support.processes import Process, Processes
from tests.support.programs import missing, require_program

_MAIN = """
{modules}
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr notice;
events {{ }}
"""

_PATHS = """
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
"""


def start_nginx(
    processes: Processes, directory: Path, config: str, *, modules: str = "", **values: object
) -> Process:
    """Run nginx.

    Args:
        config: the blocks after "events", formatted with `values`, `directory` and `paths`, which
            belongs into "http" and keeps temporary files in `directory`.
        modules: directives that load modules.
    """
    # As root, nginx would run its workers as another user, who must not enter our directory.
    user = f"user {pwd.getpwuid(os.geteuid()).pw_name};" if os.geteuid() == 0 else ""
    paths = _PATHS.format(directory=directory)
    path = directory / "nginx.conf"
    path.write_text(
        _MAIN.format(modules=modules, user=user, directory=directory)
        + config.format(directory=directory, paths=paths, **values)
    )
    nginx = require_program("nginx")
    process = processes.start(nginx, "-p", directory, "-e", "stderr", "-c", path)
    process.expect("start worker process ")
    return process


def stream_module(nginx: str) -> str:
    """The directive that loads the stream module, if nginx has it as a separate file."""
    built = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr
    if "--with-stream " in built:
        return ""
    directory = re.search(r"--modules-path=(\S+)", built)
    module = Path(directory[1] if directory else "modules", "ngx_stream_module.so")
    if not module.exists():
        missing("nginx is installed without its stream module")
    return f"load_module {module};"
