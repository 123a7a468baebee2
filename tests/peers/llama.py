"""Gets llama.cpp, the peer that Lathe is measured against: built from source for this machine and kept in the cache.

The source is the one inside the Python package `llama-cpp-python`, which pip brings; CMake and Ninja come from Python
packages too. A C++ compiler must be there. Building takes about 10 minutes on two idle cores and is done once.

Run as a program, it builds what is missing and prints the folder of the binaries:

    python3 tests/peers/llama.py [--jobs N]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
# Together these build llama.cpp; the versions are pinned because the figures name what they were measured with.
TOOLS = ["cmake==4.1.3", "ninja==1.13.0"]
TARGETS = ["llama-bench", "llama-batched-bench", "llama-server", "llama-quantize", "llama-perplexity"]


def cache() -> Path:
    """The folder of everything that is kept for comparisons."""
    root = os.environ.get("LATHE_CACHE") or Path.home() / ".cache" / "lathe"
    path = Path(root).absolute() / "peers"
    path.mkdir(parents=True, exist_ok=True)
    return path


def run(*command: str | Path, **options) -> None:
    """Runs a program with its output on stderr, and ends this one if it fails."""
    shown = " ".join(map(str, command))
    print(f"peers: {shown}", file=sys.stderr)
    if subprocess.run([*map(str, command)], stdout=sys.stderr, **options).returncode != 0:
        sys.exit(f"error: `{shown}` failed; its messages stand above")


def source() -> Path:
    """The source of llama.cpp, downloaded and unpacked if it is not there."""
    folder = cache() / f"{PACKAGE}-{VERSION}"
    llama = folder / "vendor" / "llama.cpp"
    if (llama / "CMakeLists.txt").exists():
        return llama
    download = cache() / "download"
    shutil.rmtree(download, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
    run(*pip, "--dest", download, f"{PACKAGE}=={VERSION}")
    archives = list(download.glob("*.tar.gz"))
    if len(archives) != 1:
        sys.exit(f"error: expected one source archive in {download}, found {[a.name for a in archives]}")
    with tarfile.open(archives[0]) as archive:
        # The archive's own top folder has a name that depends on how the package spells itself.
        archive.extractall(download, filter="data")
    unpacked = [path for path in download.iterdir() if path.is_dir()]
    if len(unpacked) != 1 or not (unpacked[0] / "vendor/llama.cpp/CMakeLists.txt").exists():
        sys.exit(
            f"error: {archives[0].name} holds no vendor/llama.cpp; another version may lay its files out otherwise"
        )
    unpacked[0].rename(folder)
    shutil.rmtree(download)
    return llama


def tools() -> Path:
    """A folder with cmake and ninja."""
    environment = cache() / "tools"
    programs = environment / "bin"
    stamp = environment / "installed.txt"
    if not (stamp.exists() and stamp.read_text() == "\n".join(TOOLS)):
        run(sys.executable, "-m", "venv", "--clear", environment)
        run(programs / "python3", "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *TOOLS)
        stamp.write_text("\n".join(TOOLS))
    return programs


def binaries(jobs: int | None = None) -> Path:
    """The folder of llama.cpp's programs, built if one of them is not there."""
    build = cache() / f"llama.cpp-{VERSION}-native"
    programs = build / "bin"
    if all((programs / target).exists() for target in TARGETS):
        return programs
    origin, path = source(), tools()
    # Shared libraries would have to be found at run time; the page of llama-server would be fetched from elsewhere.
    options = ["CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "BUILD_SHARED_LIBS=OFF", "LLAMA_OPENSSL=OFF"]
    options += ["LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_APP=OFF", "LLAMA_USE_PREBUILT_UI=OFF"]
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    configure = ["cmake", "-G", "Ninja", "-S", origin, "-B", build, *(f"-D{option}" for option in options)]
    run(*configure, env=environment)
    count = ["--parallel", str(jobs)] if jobs else []
    run("cmake", "--build", build, *count, "--target", *TARGETS, env=environment)
    return programs


def quantized(model: Path, form: str = "Q4_0") -> Path:
    """A model in another of llama.cpp's forms, made by its own program."""
    out = cache() / f"{model.stem}.to-{form}.gguf"
    if not out.exists():
        partial = out.with_suffix(".partial")
        run(binaries() / "llama-quantize", "--allow-requantize", model, partial, form)
        partial.rename(out)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, help="how many compilers run side by side (default: as Ninja chooses)")
    print(binaries(parser.parse_args().jobs))
