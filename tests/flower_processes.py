"""A Flower federation of real processes on this machine, with TLS and node authentication; all of them end with it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from patience import PATIENCE

EXAMPLE = Path(__file__).parents[1] / "examples" / "flower"


def environment(home):
    """No telemetry, no look for updates, no installations at run time, and all of Flower's files under `home`."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


class Federation:
    """A SuperLink and its SuperNodes, whose `node_configs` say what they have."""

    def __init__(self, home, node_configs):
        self.home = home
        self.environment = environment(home)
        self.node_configs = node_configs

    @contextmanager
    def running(self):
        keys, ports = self.home / "keys", free_ports(1 + len(self.node_configs))
        subprocess.run([EXAMPLE / "certificates.sh", keys, str(len(self.node_configs))], check=True)
        address = f"127.0.0.1:{ports[0]}"
        (self.home / "config.toml").write_text(
            f'[superlink.test]\naddress = "{address}"\nroot-certificates = "{keys / "ca.crt"}"\n'
        )
        with ExitStack() as processes:
            tls = ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
            link = ["flower-superlink", *tls, "--enable-supernode-auth", "--port", str(ports[0])]
            processes.enter_context(self.process("superlink", link, keys))
            wait_for(ports[0])
            for number, (config, port) in enumerate(zip(self.node_configs, ports[1:], strict=True), start=1):
                self.flwr("supernode", "register", keys / f"node{number}.pub", "test")
                node = ["flower-supernode", "--root-certificates", "ca.crt", "--superlink", address]
                node += ["--auth-supernode-private-key", f"node{number}", "--port", str(port), "--node-config", config]
                processes.enter_context(self.process(f"supernode{number}", node, keys))
            yield

    def flwr(self, *arguments):
        command = ["flwr", *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, app, **settings):
        """Runs the app to its end; what it printed, its processes' logs too."""
        given = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
        return self.flwr("run", app, "test", "--stream", "--run-config", given)

    @contextmanager
    def process(self, name, command, folder):
        with (self.home / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command, env=self.environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
            try:
                yield process
            finally:
                end(process)


def end(process):
    """Ends a process and those that it started, which are its session."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, request)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue


def free_ports(number):
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(number)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


def wait_for(port):
    end_of_patience = time.monotonic() + PATIENCE
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end_of_patience, f"nothing listens on port {port}"
        time.sleep(0.05)
