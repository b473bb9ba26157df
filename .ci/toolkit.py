"""Makes a folder that the feature `cuda` can be built with, on a machine without CUDA or a GPU.

    python3 .ci/toolkit.py FOLDER         # prints the CUDA_HOME in it; does nothing where it is there already

nvcc and its headers are NVIDIA's own wheels from PyPI (271 MB). Of the libraries that candle links to, only their names
are needed here: each is a stub with one empty function for every name in cudarc's bindings. A program built so starts
where the real ones are: with the driver, cuBLAS, cuRAND, NVRTC and the CUDA runtime of version 13.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

WHEELS = ["nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl"]
VERSION = "13.0.*"
# cudarc's module, the library's name for the linker, its name at run time
STUBS = [("driver", "cuda", "libcuda.so.1"), ("nvrtc", "nvrtc", "libnvrtc.so.13"), ("curand", "curand", "libcurand.so.10"),
         ("cublas", "cublas", "libcublas.so.13"), ("cublaslt", "cublasLt", "libcublasLt.so.13")]


def cudarc():
    """The sources of the cudarc that Cargo.lock names."""
    out = subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked", "--features", "cuda"],
                         check=True, stdout=subprocess.PIPE)
    package = next(package for package in json.loads(out.stdout)["packages"] if package["name"] == "cudarc")
    return pathlib.Path(package["manifest_path"]).parent / "src"


def main():
    folder = pathlib.Path(sys.argv[1]).resolve()
    home, done = folder / "nvidia" / "cu13", folder / "done"
    sources = cudarc()
    if not done.exists() or done.read_text() != sources.parent.name:
        shutil.rmtree(folder, ignore_errors=True)
        wheels = [f"{name}=={VERSION}" for name in WHEELS]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *wheels],
                       check=True, stdout=sys.stderr)
        (home / "lib64").symlink_to("lib")
        (home / "lib" / "libcudart.so").symlink_to("libcudart.so.13")
        for module, name, run_name in STUBS:
            text = (sources / module / "sys" / "mod.rs").read_text()
            functions = sorted(set(re.findall(r"\bfn ((?:cu|nvrtc)[A-Za-z0-9_]+)\s*\(", text)))
            assert len(functions) > 20, f"{module}: {len(functions)} functions"
            code = "".join(f"void {function}(void) {{}}\n" for function in functions)
            subprocess.run(["cc", "-shared", "-fPIC", "-w", "-x", "c", "-", f"-Wl,-soname,{run_name}",
                            "-o", home / "lib" / f"lib{name}.so"], input=code.encode(), check=True)
        done.write_text(sources.parent.name)
    print(home)


if __name__ == "__main__":
    main()
