"""Make `.venv` and install this repository in it, with the tested versions. Standard library only.

    python3 scripts/setup_environment.py

Run again, it does nothing (under a second). Interrupted, it goes on where it stopped. In a clone that was moved or
copied it makes the environment anew, since an environment holds the path that it was made at.
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
STAMP = VENV / "dpo_workbench.json"  # path it was made at, Python version, fingerprint of what is installed
LOG = VENV / "setup.log"  # everything that pip said
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = "notebooks,test,docs"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_PACKAGES = ("nvidia-", "cuda-", "triton", "pytorch-triton")


def main() -> None:
    """Bring `.venv` up to date, or say in plain words why that cannot be done."""
    parser = argparse.ArgumentParser(description="Make .venv and install this repository in it.")
    parser.add_argument("--same-python", action="store_true", help="make .venv anew if its Python is another version")
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
    """Why `.venv` has to be made (anew), or None. One that this script did not make is never replaced."""
    if not VENV.exists() or not any(VENV.iterdir()):
        return "there is none yet"
    made_at = read_stamp().get("path")
    found = find_python()
    problem: str | None = None
    if not (VENV / "pyvenv.cfg").is_file():
        problem = "it is not a complete environment"
    elif made_at is not None and Path(made_at) != VENV.resolve():
        problem = f"it was made at {made_at}, and an environment does not work elsewhere"
    elif found is None:
        problem = "its Python does not start"
    elif same_python and found[0] != running_version():
        problem = f"it has Python {found[0]}, and {running_version()} was asked for"
    if problem is not None and not STAMP.is_file():
        stop(f".venv cannot be used: {problem}. This script did not make it: move it away or delete it, and run again.")
    return problem


def make_venv(reason: str) -> None:
    """Make `.venv` from nothing."""
    version = running_version()
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        stop(
            f"Python {version} must be able to make environments. Its venv or ensurepip module is missing "
            f"({sys.executable}). On Debian or Ubuntu: sudo apt install python{version}-venv"
        )
    say(f"making .venv with Python {version}: {reason}.")
    base = getattr(sys, "_base_executable", None) or sys.executable  # inside an active .venv, the Python behind it
    VENV.mkdir(exist_ok=True)
    write_stamp(None)  # first, and pyvenv.cfg goes first: an interrupted run is then seen as ours and incomplete
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
    """Version and site-packages of the environment's Python, or None where it does not start."""
    code = "import sys, sysconfig; print('%d.%d' % sys.version_info[:2]); print(sysconfig.get_path('purelib'))"
    try:
        found = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    lines = found.stdout.splitlines()
    return (lines[0], Path(lines[1])) if found.returncode == 0 else None


def python_in_venv() -> tuple[str, Path]:
    """As `find_python`, where it must be there."""
    found = find_python()
    if found is None:
        stop("the Python of .venv does not start. Delete .venv and run again.")
    return found


def prepare_pip() -> None:
    """Have a working pip, and clear away what an interrupted pip left half written."""
    site_packages = python_in_venv()[1]
    for path in site_packages.glob("*.dist-info"):
        if not (path / "RECORD").is_file():  # pip writes it last, and refuses to replace a package without it
            say(f"clearing a half-written package: {path.name}.")
            shutil.rmtree(path)
    for path in site_packages.glob("~*"):  # pip's own backups of packages that it was replacing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True).returncode:
        say("installing pip: .venv has none.")
        run_or_stop([str(PYTHON), "-m", "ensurepip", "--upgrade"], "pip could not be installed")


# --- torch -----------------------------------------------------------------------------------------------------------


def install_torch(pin: str) -> None:
    """Install the torch that fits this machine: CUDA where a GPU is, else never gigabytes of CUDA libraries."""
    version = torch_in_venv()
    if version is not None:
        say(f"torch {version} is installed already: kept.")
    elif sys.platform != "linux":
        install_plain_torch(pin, "the ordinary wheel of this system has no CUDA libraries")
    elif os.environ.get("DPO_WORKBENCH_TORCH") == "any":
        install_plain_torch(pin, "DPO_WORKBENCH_TORCH=any")
    elif has_nvidia_gpu():
        install_plain_torch(pin, "an NVIDIA GPU is here")
    elif not install_from_cpu_index(pin):
        refuse_cuda_libraries(pin)
        install_plain_torch(pin, "what pip is set up to use offers a build without CUDA libraries")


def install_plain_torch(pin: str, reason: str) -> None:
    say(f"installing torch {pin} with pip as it is set up: {reason}.")
    run_or_stop(pip("-c", str(CONSTRAINTS), f"torch=={pin}"), f"torch {pin} could not be installed")


def install_from_cpu_index(pin: str) -> bool:
    """Whether torch's CPU build came from PyTorch's own index. Its dependencies come later, with everything else."""
    if not answers(f"{CPU_INDEX}/torch/"):
        say(f"PyTorch's CPU index does not answer ({CPU_INDEX}): looking at what pip is set up to use.")
        return False
    say(f"installing torch {pin} (CPU build, about 200 MB) from {CPU_INDEX}: no NVIDIA GPU here.")
    # "+cpu" can only be a CPU build, wherever pip's other sources would let it come from.
    command = pip("--no-deps", "--index-url", CPU_INDEX, "--timeout", "15", "--retries", "2", f"torch=={pin}+cpu")
    if run(command) == 0:
        return True
    say("that failed: looking at what pip is set up to use.")
    return False


def refuse_cuda_libraries(pin: str) -> None:
    """Stop where an ordinary `pip install torch` would bring CUDA libraries to a machine without an NVIDIA GPU."""
    # From 23.3 on pip reads the metadata of a wheel without fetching the wheel. Without it the check is only slower.
    run(pip("--upgrade", "pip>=23.3"))
    command = pip("--quiet", "--dry-run", "--report", "-", "-c", str(CONSTRAINTS), f"torch=={pin}")
    answer = subprocess.run(command, cwd=ROOT, env=pip_environment(), capture_output=True, text=True)
    if answer.returncode:
        stop(f"pip finds no torch {pin} for Python {python_in_venv()[0]}:\n{answer.stderr.strip()}\n{advice(pin)}")
    names = sorted(item["metadata"]["name"].lower().replace("_", "-") for item in json.loads(answer.stdout)["install"])
    cuda = [name for name in names if name.startswith(CUDA_PACKAGES)]
    if cuda:
        stop(
            f"torch must come without CUDA libraries here: no NVIDIA GPU was found (nvidia-smi). "
            f"Got {len(cuda)} CUDA packages, some gigabytes: {', '.join(cuda)}.\n{advice(pin)}"
        )


def advice(pin: str) -> str:
    return (
        "Choose one, and run again:\n"
        f"  1. let this machine reach {CPU_INDEX} (behind a proxy: set HTTPS_PROXY);\n"
        f"  2. put the wheel torch-{pin}+cpu for this Python in a folder: PIP_FIND_LINKS=/that/folder make setup;\n"
        "  3. take the ordinary build, CUDA libraries included: DPO_WORKBENCH_TORCH=any make setup"
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
    """Whether a server answers within the time, in whatever words: a refusal is an answer too, and pip's to judge."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except urllib.error.URLError as error:
            if "certificate" in str(error).lower():  # pip may know a certificate that Python does not
                answered.set()
        except OSError:
            pass

    # A thread, because the timeout of a connection holds for each address of a name, and a name may have eight.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


# --- the project -----------------------------------------------------------------------------------------------------


def torch_pin() -> str:
    """The torch version that constraints.txt names."""
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("torch=="):
            return line.removeprefix("torch==").split(";")[0].strip()
    stop("constraints.txt must pin torch. Got no line that starts with torch==. Restore the file.")


def install_project(pin: str) -> None:
    """Install this repository, editable, with the tested versions; a torch that is there already stays as it is."""
    say(f"installing dpo_workbench[{EXTRAS}] and what it needs, in the versions of constraints.txt.")
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines(keepends=True)
    installed = torch_in_venv() or pin
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        kept = [f"torch=={installed}\n" if line.startswith("torch==") else line for line in lines]
        constraints.write_text("".join(kept), encoding="utf-8")
        command = pip("-c", str(constraints), "-e", f".[{EXTRAS}]")
        run_or_stop(command, "the project could not be installed")


def fingerprint() -> str:
    """Changes when the installation has to be brought up to date."""
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
    """Two setups of one clone run one after the other. Returns the handle that holds the lock until it is closed."""
    if os.name == "nt":
        return os.open(os.devnull, os.O_RDONLY)
    import fcntl

    handle = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another setup of this clone.")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass
    return handle


def running_version() -> str:
    return "{}.{}".format(*sys.version_info[:2])


def pip(*arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", "install", "--progress-bar", "off", *arguments]


def pip_environment() -> dict[str, str]:
    """As it is, but installing into `.venv` whatever `--user` or `--target` pip is set up with."""
    dropped = ("PIP_TARGET", "PIP_PREFIX", "PYTHONHOME")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(command: list[str]) -> int:
    """Run, with the output in the log and a sign of life every 30 seconds. Returns the exit status."""
    started = time.monotonic()
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(command, cwd=ROOT, env=pip_environment(), stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                return process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                say(f"... still at it after {time.monotonic() - started:.0f} s")
            except KeyboardInterrupt:
                process.wait()  # pip was interrupted as well, and tidies up
                raise


def run_or_stop(command: list[str], problem: str) -> None:
    status = run(command)
    if status:
        last = "\n".join(LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
        stop(f"{problem} (exit {status}). The last lines of {LOG.relative_to(ROOT)}:\n{last}\nRun again to go on.")


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def stop(text: str) -> NoReturn:
    print(f"setup: {text}", file=sys.stderr, flush=True)
    raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted. Run again: it goes on where it stopped.")
