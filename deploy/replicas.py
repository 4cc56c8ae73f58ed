"""Three replicas of the service on loopback behind HAProxy, started and stopped together (chapter 10b).

`python deploy/replicas.py FOLDER` serves a folder with a version until Ctrl-C; tests and `tests/benchmarks/balancer.py`
use `replicated`. Each replica maps the version's arrays from the same files; health and readiness have a port of their
own, which HAProxy asks twice a second.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spark_cluster import LOOPBACK, free_port

SETTINGS = Path(__file__).with_name("haproxy.cfg")


@dataclass
class Replica:
    """One process of the service, and where it is asked."""

    folder: Path
    rate: float
    port: int
    health: int
    process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        """Where it answers itself, past the balancer."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start the process; it is ready some seconds later."""
        own = ["--folder", str(self.folder), "--port", str(self.port), "--health-port", str(self.health)]
        with (self.folder / "replicas.log").open("ab") as log:
            command = [sys.executable, "-m", "recutils.service", *own, "--rate", str(self.rate)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        """Kill the process, whatever it has in hand."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def renew(self, seconds: float = 60) -> None:
        """Tell the process to end (it drains), and start another; returns when the balancer has seen it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(seconds)
        self.start()
        wait_until_ready([self.address], [self], seconds)


@contextlib.contextmanager
def replicated(
    folder: Path, balance: str = "leastconn", rate: float = 1e6, seconds: float = 90
) -> Iterator[tuple[str, list[Replica]]]:
    """The balancer's address, and the replicas behind it. `rate`: requests a second for one key, at each of them.

    Raises RuntimeError where HAProxy is missing, or where the replicas are not ready in time.
    """
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise RuntimeError("HAProxy is not installed (Debian: apt-get install haproxy).")
    front = f"{LOOPBACK}:{free_port()}"
    environment = os.environ | {"BIND": front, "BALANCE": balance}
    found = [Replica(folder, rate, free_port(), free_port()) for _ in range(3)]
    with contextlib.ExitStack() as ends:
        for number, replica in enumerate(found, 1):
            environment |= {f"REPLICA_{number}": f"{LOOPBACK}:{replica.port}", f"HEALTH_{number}": str(replica.health)}
            ends.callback(replica.stop)
            replica.start()
        wait_until_ready([replica.address for replica in found], found, seconds)
        balancer = subprocess.Popen([program, "-q", "-db", "-f", str(SETTINGS)], env=environment)
        ends.callback(balancer.wait)
        ends.callback(balancer.kill)
        wait_until_ready([f"http://{front}"], found, seconds)
        yield f"http://{front}", found


def wait_until_ready(addresses: list[str], replicas: list[Replica], seconds: float) -> None:
    """Until every address answers 200 on /ready, and a balancer has had the time to see it.

    Raises RuntimeError where one never does, or a replica has ended.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(replica.process and replica.process.poll() is None for replica in replicas):
        with contextlib.suppress(OSError):
            for address in addresses:
                urllib.request.urlopen(f"{address}/ready", timeout=2).close()
            time.sleep(1.5)  # two checks have passed by then
            return
        time.sleep(0.2)
    raise RuntimeError(f"Not all replicas were ready after {seconds:.0f} s; see replicas.log in the folder.")


if __name__ == "__main__":
    with replicated(Path(sys.argv[1])) as (address, _):
        print(address, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(1e9)
