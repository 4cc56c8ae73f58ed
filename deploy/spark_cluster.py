"""A Spark cluster on this machine: one master and two workers, on loopback only (chapter 10).

    python deploy/spark_cluster.py          start it, print its address, stop it on Ctrl-C

Or from Python: `with standalone_cluster() as master: ...`, where `master` is what `SparkSession.builder.master` takes.
It shows that a program is not bound to local mode. It adds no speed: both workers share this machine's cores.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def standalone_cluster(workers: int = 2, memory_mb: int = 512, seconds: float = 120) -> Iterator[str]:
    """A running cluster's address; each worker has one core and `memory_mb` for its executor.

    Raises RuntimeError where Java or PySpark is missing, or where the workers are not there in time.
    """
    home = os.environ.get("JAVA_HOME")
    if not shutil.which("java", path=home and str(Path(home) / "bin")):
        raise RuntimeError("Spark needs Java 17 or newer; install one (Debian: openjdk-17-jre-headless).")
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise RuntimeError("PySpark is not installed; install recutils[scale].")
    program, port, page = Path(spec.origin).parent / "bin" / "spark-class", free_port(), free_port()
    master = f"spark://{LOOPBACK}:{port}"
    started: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"SPARK_LOCAL_IP": LOOPBACK, "SPARK_DAEMON_MEMORY": "256m"}
        environment |= {"PYSPARK_PYTHON": sys.executable, "SPARK_WORKER_DIR": folder, "SPARK_LOCAL_DIRS": folder}

        def start(*arguments: str) -> None:
            command = ["bash", str(program), *arguments]
            silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            started.append(subprocess.Popen(command, env=environment, cwd=folder, **silent))

        try:
            place = ("--host", LOOPBACK, "--port")
            start("org.apache.spark.deploy.master.Master", *place, str(port), "--webui-port", str(page))
            for _ in range(workers):
                own = ("--cores", "1", "--memory", f"{memory_mb}m", "--webui-port", str(free_port()))
                start("org.apache.spark.deploy.worker.Worker", *place, str(free_port()), *own, master)
            wait_for_workers(page, workers, seconds, started)
            yield master
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_for_workers(page: int, workers: int, seconds: float, started: list[subprocess.Popen]) -> None:
    """Return once the master counts that many workers. Raises RuntimeError where it never does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(process.poll() is None for process in started):
        with contextlib.suppress(OSError, ValueError):
            answer = urllib.request.urlopen(f"http://{LOOPBACK}:{page}/json/", timeout=2)
            if json.load(answer)["aliveworkers"] >= workers:
                return
        time.sleep(0.3)
    raise RuntimeError(f"The Spark cluster had not {workers} workers after {seconds:.0f} s.")


if __name__ == "__main__":
    with standalone_cluster() as address:
        print(address, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(1e9)
