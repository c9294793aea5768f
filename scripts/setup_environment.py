"""Create `.venv` and install this repository in it, with the tested versions. Standard library only.

    python3 scripts/setup_environment.py

A second run does nothing and takes under a second. After an interrupt, run it again: it continues where it stopped. If
the clone was moved or copied, it creates the environment again, because an environment contains its own path.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "dpo_workbench.json"  # where it was created, and a hash of what is installed
LOG = VENV / "setup.log"  # the output of pip
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = "notebooks,test,docs"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_PACKAGES = ("nvidia-", "cuda-", "triton", "pytorch-triton")


def main() -> None:
    """Bring `.venv` up to date, or explain why that is not possible."""
    parser = argparse.ArgumentParser(description="Create .venv and install this repository in it.")
    parser.add_argument("--same-python", action="store_true", help="replace .venv if it has another Python version")
    options = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036  (this script meets Pythons that the package does not support)
        stop(f"Python 3.10 or later is needed. Got {sys.version.split()[0]}. Try: make setup PYTHON=python3.12")
    lock = wait_for_other_setups()
    reason = why_unusable(options.same_python)
    if reason is not None:
        make_venv(reason)
    wanted = fingerprint()
    if read_stamp().get("installed") == wanted:
        say(f"ready: .venv is up to date (Python {python_in_venv()[0]}).")
        return
    LOG.unlink(missing_ok=True)
    say(f"installing into .venv (Python {python_in_venv()[0]}): some minutes and about 2 GB of disk the first time.")
    prepare_pip()
    pin = torch_pin()
    install_torch(pin)
    install_project(pin)
    write_stamp(wanted)
    say("ready. Next: make demo, make lab or make test.")
    os.close(lock)


# --- the environment -------------------------------------------------------------------------------------------------


def why_unusable(same_python: bool) -> str | None:
    """Why `.venv` has to be created (again), or None. Stops if another program created it: that is never replaced."""
    if not VENV.exists() or not any(VENV.iterdir()):
        return "it does not exist yet"
    made_at = read_stamp().get("path")
    found = find_python()
    problem: str | None = None
    if not (VENV / "pyvenv.cfg").is_file():
        problem = "it is not a complete environment"
    elif made_at is not None and Path(made_at) != VENV.resolve():
        problem = f"it was created at {made_at} and does not work in another place"
    elif found is None:
        problem = "its Python does not start"
    elif same_python and found[0] != running_version():
        problem = f"it has Python {found[0]}, and {running_version()} was asked for"
    if problem is not None and not STAMP.is_file():
        stop(f".venv cannot be used: {problem}. This script did not create it: move or delete it, then run again.")
    return problem


def make_venv(reason: str) -> None:
    """Create `.venv`, after removing what is left of an old one."""
    version = running_version()
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        stop(
            f"Python {version} needs its venv and ensurepip modules to create an environment. One of them is missing "
            f"({sys.executable}). On Debian or Ubuntu: sudo apt install python{version}-venv"
        )
    say(f"creating .venv with Python {version}: {reason}.")
    base = getattr(sys, "_base_executable", None) or sys.executable  # of an active .venv: the Python behind it
    VENV.mkdir(exist_ok=True)
    write_stamp(None)  # the stamp first: the next run then sees that this script was interrupted here
    (VENV / "pyvenv.cfg").unlink(missing_ok=True)
    for path in VENV.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != STAMP:
            path.unlink()
    made = subprocess.run([base, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        stop(f"python -m venv .venv failed (exit {made.returncode}):\n{made.stdout}{made.stderr}")


def find_python() -> tuple[str, Path] | None:
    """Version and site-packages of the environment's Python, or None if it does not start."""
    code = "import sys, sysconfig; print('%d.%d' % sys.version_info[:2]); print(sysconfig.get_path('purelib'))"
    try:
        found = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    lines = found.stdout.splitlines()
    return (lines[0], Path(lines[1])) if found.returncode == 0 else None


def python_in_venv() -> tuple[str, Path]:
    """`find_python`, which must find one."""
    found = find_python()
    if found is None:
        stop("the Python of .venv does not start. Delete .venv and run again.")
    return found


def prepare_pip() -> None:
    """Make sure that pip works, and remove what an interrupted pip left half written."""
    site_packages = python_in_venv()[1]
    for path in site_packages.glob("*.dist-info"):
        if not (path / "RECORD").is_file():  # pip writes RECORD last, and cannot replace a package without it
            say(f"removing a half-written package: {path.name}.")
            shutil.rmtree(path)
    for path in site_packages.glob("~*"):  # pip's backups of packages that it was replacing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True).returncode:
        say("installing pip, which is missing in .venv.")
        run_or_stop([str(PYTHON), "-m", "ensurepip", "--upgrade"], "pip could not be installed")


# --- torch -----------------------------------------------------------------------------------------------------------


def install_torch(pin: str) -> None:
    """Install the torch build for this machine: with CUDA if it has a GPU, else without gigabytes of CUDA libraries."""
    version = torch_in_venv()
    if version is not None:
        say(f"torch {version} is already installed.")
    elif sys.platform != "linux":
        install_plain_torch(pin, "the ordinary wheel of this system has no CUDA libraries")
    elif os.environ.get("DPO_WORKBENCH_TORCH") == "any":
        install_plain_torch(pin, "DPO_WORKBENCH_TORCH=any")
    elif has_nvidia_gpu():
        install_plain_torch(pin, "this machine has an NVIDIA GPU")
    elif not install_from_cpu_index(pin):
        refuse_cuda_libraries(pin)
        install_plain_torch(pin, "the index of pip's settings has a build without CUDA libraries")


def install_plain_torch(pin: str, reason: str) -> None:
    say(f"installing torch {pin} with pip's own settings: {reason}.")
    run_or_stop(pip("-c", str(CONSTRAINTS), f"torch=={pin}"), f"torch {pin} could not be installed")


def install_from_cpu_index(pin: str) -> bool:
    """Try to install the CPU build from PyTorch's index; True if that worked. Its dependencies follow later."""
    if not answers(f"{CPU_INDEX}/torch/"):
        say(f"PyTorch's CPU index does not answer ({CPU_INDEX}): trying pip's own settings.")
        return False
    say(f"installing torch {pin} (CPU build, about 200 MB) from {CPU_INDEX}: this machine has no NVIDIA GPU.")
    # With "+cpu" pip takes a CPU build only, also if its settings name other sources.
    command = pip("--no-deps", "--index-url", CPU_INDEX, "--timeout", "15", "--retries", "2", f"torch=={pin}+cpu")
    if run(command) == 0:
        return True
    say("that failed: trying pip's own settings.")
    return False


def refuse_cuda_libraries(pin: str) -> None:
    """Stop if a plain `pip install torch` would install CUDA libraries on this machine, which has no NVIDIA GPU."""
    # pip 23.3 and later reads the metadata of a wheel without downloading it, which makes this check quick.
    run(pip("--upgrade", "pip>=23.3"))
    command = pip("--quiet", "--dry-run", "--report", "-", "-c", str(CONSTRAINTS), f"torch=={pin}")
    answer = subprocess.run(command, cwd=ROOT, env=pip_environment(), capture_output=True, text=True)
    if answer.returncode:
        stop(f"pip finds no torch {pin} for Python {python_in_venv()[0]}:\n{answer.stderr.strip()}\n{advice(pin)}")
    names = sorted(item["metadata"]["name"].lower().replace("_", "-") for item in json.loads(answer.stdout)["install"])
    cuda = [name for name in names if name.startswith(CUDA_PACKAGES)]
    if cuda:
        stop(
            f"torch must be installed without CUDA libraries: nvidia-smi found no NVIDIA GPU. "
            f"Got {len(cuda)} CUDA packages, some gigabytes: {', '.join(cuda)}.\n{advice(pin)}"
        )


def advice(pin: str) -> str:
    return (
        "Choose one, and run again:\n"
        f"  1. give this machine access to {CPU_INDEX} (behind a proxy: set HTTPS_PROXY);\n"
        f"  2. put the wheel torch-{pin}+cpu for this Python into a folder: PIP_FIND_LINKS=/that/folder make setup;\n"
        "  3. accept the ordinary build with its CUDA libraries: DPO_WORKBENCH_TORCH=any make setup"
    )


def torch_in_venv() -> str | None:
    code = "import importlib.metadata as m; print(m.version('torch'))"
    found = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


def has_nvidia_gpu() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def answers(url: str, seconds: float = 6.0) -> bool:
    """Whether a server answers in time. A refusal counts as an answer: pip will report it."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except urllib.error.URLError as error:
            if "certificate" in str(error).lower():  # pip may know a certificate that Python does not know
                answered.set()
        except OSError:
            pass

    # A thread limits the whole time: urlopen's timeout counts for each address of a name, and a name may have eight.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


# --- the project -----------------------------------------------------------------------------------------------------


def torch_pin() -> str:
    """The torch version in constraints.txt."""
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("torch=="):
            return line.removeprefix("torch==").split(";")[0].strip()
    stop("constraints.txt must pin torch. It has no line that starts with torch==. Restore the file.")


def install_project(pin: str) -> None:
    """Install this repository, editable, with the tested versions. A torch that is already installed stays."""
    say(f"installing dpo_workbench[{EXTRAS}] and its dependencies, with the versions of constraints.txt.")
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines(keepends=True)
    installed = torch_in_venv() or pin
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        kept = [f"torch=={installed}\n" if line.startswith("torch==") else line for line in lines]
        constraints.write_text("".join(kept), encoding="utf-8")
        command = pip("-c", str(constraints), "-e", f".[{EXTRAS}]")
        run_or_stop(command, "the project could not be installed")


def fingerprint() -> str:
    """A hash that changes when the installation has to be updated."""
    digest = hashlib.sha256(EXTRAS.encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_stamp() -> dict[str, Any]:
    try:
        return dict(json.loads(STAMP.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write_stamp(installed: str | None) -> None:
    STAMP.write_text(json.dumps({"path": str(VENV.resolve()), "installed": installed}) + "\n", encoding="utf-8")


# --- helpers ---------------------------------------------------------------------------------------------------------


def wait_for_other_setups() -> int:
    """Wait until no other setup of this clone runs. Returns a handle that holds the lock until it is closed."""
    if os.name == "nt":
        return os.open(os.devnull, os.O_RDONLY)
    import fcntl

    handle = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another setup of this clone.")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # this file system has no locks
        pass
    return handle


def running_version() -> str:
    return "{}.{}".format(*sys.version_info[:2])


def pip(*arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", "install", "--progress-bar", "off", *arguments]


def pip_environment() -> dict[str, str]:
    """This environment, but pip installs into `.venv` even if its settings say `--user` or `--target`."""
    dropped = ("PIP_TARGET", "PIP_PREFIX", "PYTHONHOME")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(command: list[str]) -> int:
    """Run a command with its output in the log, and print a line every 30 seconds. Returns the exit status."""
    started = time.monotonic()
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(command, cwd=ROOT, env=pip_environment(), stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                return process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                say(f"... still running after {time.monotonic() - started:.0f} s")
            except KeyboardInterrupt:
                process.wait()  # pip gets the interrupt too, and cleans up
                raise


def run_or_stop(command: list[str], problem: str) -> None:
    status = run(command)
    if status:
        last = "\n".join(LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
        stop(f"{problem} (exit {status}). The last lines of {LOG.relative_to(ROOT)}:\n{last}\nRun again to continue.")


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def stop(text: str) -> NoReturn:
    print(f"setup: {text}", file=sys.stderr, flush=True)
    raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted. Run again to continue.")
