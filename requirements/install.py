"""Install the course's locked packages: look at the machine, choose a tier and say why, go on where a run stopped.

    python3 requirements/install.py            # makes .venv and fills it (make setup)
    python requirements/install.py --into-current      # into the running environment (conda)

Only the standard library. Python 3.6 must be able to read this file, so that a Python that is too old gets a sentence
and not a SyntaxError; the files that it imports need 3.11. Every finished step is written into the environment.
"""

import sys

PYTHONS = ((3, 11), (3, 13))


def explain_python(version):
    """The sentence for a Python that is too old or too new; "" if it is right."""
    if PYTHONS[0] <= version[:2] <= PYTHONS[1]:
        return ""
    shown, age = ".".join(str(part) for part in version), "old" if version[:2] < PYTHONS[0] else "new"
    return (
        f"This is Python {shown}, too {age} for the course: its packages exist for 3.11, 3.12 and 3.13. Next: install "
        "one of them (Debian: apt-get install python3.11 python3.11-venv; anywhere: conda or pyenv), then "
        "`make setup PYTHON=python3.11`."
    )


if __name__ == "__main__" and explain_python(sys.version_info[:3]):
    sys.exit("\n" + explain_python(sys.version_info[:3]))

import argparse
import errno
import re
import time
from pathlib import Path

from console import Progress, Stop, list_few, say
from disk import check_disk, estimate_need_bytes, find_pip_cache, load_sizes
from environment import OWN_VERSION, Environment, make_venv, take_turn
from machine import check_compiler, check_path, check_platform, choose_tier, find_gpu
from pins import find_missing, list_installed, load_lock
from pip_runner import ROOT, explain_failure, run_pip

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STEPS = ("torch", "packages", "labkit")
# For an environment of one's own (conda): `make lab` would make a second one.
OPEN_LAB = "OMP_WAIT_POLICY=passive python -m jupyterlab --ServerApp.ip=127.0.0.1 labs/00_start_here.ipynb"
INSTALL = ["install", "--no-deps", "--no-input", "--progress-bar", "off"]


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", choices=("cpu", "gpu"), help="instead of what the hardware suggests")
    parser.add_argument("--into-current", action="store_true", help="into the running environment (conda)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
    parser.add_argument("--venv", default=ROOT / ".venv", help="folder of the environment")
    parser.add_argument("--lock", type=Path, help="another lock file (make bump)")
    return parser.parse_args(arguments)


def install(options):
    check_platform()
    if options.into_current:
        environment = Environment(Path(sys.prefix), Path(sys.executable))
    else:
        folder = Path(options.venv).resolve()  # venv refuses a link; what it leads to is a folder like any other
        environment = Environment(folder, folder / "bin" / "python")
    check_path(ROOT, environment.folder)
    if options.dry_run:
        fill(environment, options)
        return
    with take_turn(environment.folder.parent):
        fill(environment, options)


def fill(environment, options):
    """Bring the environment to what the lock names, step by step; what is finished already is left out."""
    started = time.monotonic()
    tier, why = choose_tier(find_gpu(), options.tier)
    lock = read_lock(options.lock or ROOT / "requirements" / f"{tier}.lock")
    stamp, installed = environment.load_stamp(), list_installed(environment.site)
    identity = {"tier": tier, "lock_sha256": lock.sha256, "folder": str(environment.folder), "course": str(ROOT),
                "python": OWN_VERSION}  # fmt: skip
    # A stamp without "python" was written before that key existed; the environment itself is asked below.
    is_same = all(stamp.get(key, value) == value for key, value in identity.items())
    finished = list(stamp.get("finished", [])) if is_same else []
    changed = {step: names for step, names in find_changed(lock, installed).items() if step in finished and names}
    if finished == list(STEPS) and not changed and environment.ask_version() == OWN_VERSION:
        say(f"The environment is complete ({tier} tier: {why}).")
        return
    say(f"Tier {tier}: {why}.")
    old_names, fault = stamp.get("names", []), environment.find_fault(tier)
    if fault and options.into_current:
        raise Stop(f"This environment cannot be used: {fault}. Next: make a new one (the first lines of "
                   "environment.yml say how), then run this again there.")  # fmt: skip
    if fault:
        finished, installed, old_names = [], {}, []
    elif changed:
        finished = [step for step in finished if step not in changed]
        say(f"Gone or changed since the last set-up; installing again: {list_few(sum(changed.values(), []))}.")
    check_compiler()
    check_disk(estimate_need_bytes(lock, installed, load_sizes()), environment.folder, find_pip_cache())
    if options.dry_run:
        steps = [step for step in STEPS if step not in finished and (step != "torch" or lock.torch)]
        anew = f", made anew ({fault})" if fault else ""
        say(f"Would install into {environment.folder}{anew}: {', '.join(steps)}.")
        return
    if not options.into_current:
        make_venv(environment, fault)
    # Until the packages are installed, the old lock's names count too: what went is removed then, whenever that is.
    stamp = {**identity, "finished": finished, "names": sorted({*old_names, *lock.pins})}
    environment.save_stamp(stamp)
    for step in STEPS:
        if step in finished:
            continue
        if step == "torch" and lock.torch:
            install_torch(environment, lock.torch)
        elif step == "packages":
            install_packages(environment, lock, old_names)
            stamp["names"] = sorted(lock.pins)
        elif step == "labkit":
            install_labkit(environment)
        stamp["finished"] = [name for name in STEPS if name in stamp["finished"] or name == step]
        environment.save_stamp(stamp)
    seconds, command = time.monotonic() - started, say_how_to_open(environment, options.into_current)
    say(f"Ready after {seconds:.0f} s. Open the first lab with `{command}`.")


def read_lock(path):
    try:
        return load_lock(path.resolve())
    except OSError as error:
        raise Stop(f"The lock {path.name} cannot be read ({error.strerror}). Next: restore it with `git checkout "
                   "requirements`.") from error  # fmt: skip


def find_changed(lock, installed):
    """{step: names of its packages that are missing or have another version}."""
    return {
        "torch": find_missing({"torch": lock.torch}, installed) if lock.torch else [],
        "packages": find_missing(lock.pins, installed),
        "labkit": [] if "labkit" in installed else ["labkit"],
    }


def install_torch(environment, version):
    """Install torch's CPU wheel from pip's configured places, else from PyTorch's own CPU index; never a CUDA build.

    The version names the build (2.13.0+cpu): no CUDA build answers to that, and what was installed is looked at.
    """
    say(f"Installing torch {version}.")
    for extra in ([], ["--index-url", TORCH_CPU_INDEX]):
        arguments = [*INSTALL, "--only-binary", ":all:", *extra, f"torch=={version}"]
        status, output = run_pip(environment.python, arguments, environment.log)
        if status == 0:
            break
        if not re.search("No matching distribution|Could not find a version", output):
            raise Stop(explain_failure(output, environment.log))
        if not extra:
            say(f"  pip's configured places do not have it; asking {TORCH_CPU_INDEX}.")
    else:
        raise Stop(f"No CPU wheel of torch {version} was found, neither in pip's configured places nor on "
                   f"{TORCH_CPU_INDEX}. {explain_failure(output, environment.log)}")  # fmt: skip
    seen = list_installed(environment.site).get("torch")
    if seen != version:
        raise Stop(f"torch {seen} was installed where {version} was asked for. Next: remove it (`pip uninstall torch`) "
                   "and run this again.")  # fmt: skip


def install_packages(environment, lock, old_names):
    gone = sorted(set(old_names) - set(lock.pins))
    if gone:
        say(f"Removing what the lock no longer holds: {', '.join(gone)}.")
        run_pip(environment.python, ["uninstall", "--yes", *gone], environment.log)
    say(f"Installing {len(lock.pins)} packages from {lock.path.name}.")
    progress = Progress(len(lock.pins), environment.site)
    arguments = [*INSTALL, "--require-hashes", "-r", str(lock.path)]
    status, output = run_pip(environment.python, arguments, environment.log, progress)
    if status != 0:
        raise Stop(explain_failure(output, environment.log))


def install_labkit(environment):
    say("Installing labkit from this folder.")
    arguments = [*INSTALL, "--no-build-isolation", "--editable", str(ROOT)]
    status, output = run_pip(environment.python, arguments, environment.log)
    if status != 0:
        raise Stop(explain_failure(output, environment.log))


def say_how_to_open(environment, is_current):
    if is_current:
        return OPEN_LAB
    is_usual = environment.folder == (ROOT / ".venv").resolve()
    return "make lab" if is_usual else f'make lab VENV="{environment.folder}"'


def main(arguments=None):
    try:
        install(parse(arguments))
    except Stop as stop:
        sys.stdout.flush()
        sys.stderr.write(f"\n{stop}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. What is finished stays; run this again and it goes on from here.\n")
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        step = "free some disk" if error.errno == errno.ENOSPC else "check the rights on this folder"
        fact = error.strerror or error
        sys.stderr.write(f"\nThe installation stopped: {fact}{where}. Next: {step}, then run this again.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
