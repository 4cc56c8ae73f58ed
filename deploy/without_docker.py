"""The steps of deploy/Containerfile without a container tool: in a virtual environment under a folder of its own.

    python deploy/without_docker.py FOLDER [what is added to the command, as --port 8080]

Files lie under FOLDER as they would under / in the image, the packages in FOLDER/venv. The command runs there as the
image's user (where this is run by root), with the image's variables, RECUTILS_* of this shell, and no others. What a
step needs of the system (libgomp1) must be there; the base image's Python is replaced by the one that runs this.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent


def steps() -> list[tuple[str, str]]:
    """(instruction, the rest) of each line."""
    lines = (SOURCE / "deploy" / "Containerfile").read_text().splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line and line[0] != "#"]


def build(root: Path) -> tuple[list[str], dict[str, object]]:
    """Do all steps; the command, and how it is to be run (for `subprocess`)."""
    venv.create(root / "venv", with_pip=True)
    variables = {"PATH": f"{root / 'venv' / 'bin'}:/usr/bin:/bin", "HOME": str(root), "LANG": "C.UTF-8"}
    place, uid, command = root, None, []
    for step, rest in steps():
        print(f"{step} {rest}", flush=True)
        if step == "WORKDIR":
            place = root / rest.strip("/")
            place.mkdir(parents=True, exist_ok=True)
        elif step == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy_to(SOURCE / source, place / target, len(sources) > 1)
        elif step == "RUN" and rest.startswith("pip "):
            subprocess.run(["python", "-m", *shlex.split(rest)], cwd=place, env=variables, check=True)
        elif step == "RUN" and rest.startswith("useradd "):
            uid = int(rest.split("--uid ")[1].split()[0])
        elif step == "ENV":
            variables |= dict(part.split("=", 1) for part in rest.split())
        elif step == "CMD":
            command = json.loads(rest)
    served = root / variables["RECUTILS_SERVED"].strip("/")
    served.mkdir(exist_ok=True)
    variables["RECUTILS_SERVED"] = str(served)
    how: dict[str, object] = {"cwd": place, "env": variables}
    if os.geteuid() == 0:
        user: dict[str, object] = {"user": uid, "group": uid, "extra_groups": []}
        try:
            subprocess.run(["python", "-c", ""], **how, **user, check=True)
        except (OSError, subprocess.CalledProcessError):
            print(f"User {uid} may not run {sys.executable} there, so root does; use a Python that all may read.")
            return command, how
        for path in (served, *served.rglob("*")):
            os.chown(path, uid, uid)
        how |= user
    return command, how


def copy_to(source: Path, target: Path, several: bool) -> None:
    """As COPY does: the content of a folder, or a file into a folder."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(source, target / source.name if several or target.is_dir() else target)


def main() -> None:
    """Build, then run until a signal ends it."""
    command, how = build(Path(sys.argv[1]).resolve())
    how["env"] |= {
        name: value for name, value in os.environ.items() if name.startswith("RECUTILS_") and name not in how["env"]
    }
    os.chdir(how["cwd"])
    if "user" in how:
        os.setgroups([])
        os.setgid(how["group"])
        os.setuid(how["user"])
    os.execvpe(command[0], [*command, *sys.argv[2:]], how["env"])


if __name__ == "__main__":
    main()
