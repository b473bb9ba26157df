"""Compiles every kernel of src/kernels for every GPU generation and writes src/kernels/cuda/compiled.

Run it after a change of a .cu or .cuh file, and commit what it writes:

    python3 -m venv VENV
    VENV/bin/pip install --no-deps 'nvidia-cuda-nvrtc-cu12==12.4.*' 'nvidia-cuda-runtime-cu12==12.4.*' \
        'nvidia-cuda-cccl-cu12==12.4.*'
    VENV/bin/python src/kernels/cuda/build/build.py            # all targets; needs no GPU
    VENV/bin/python src/kernels/cuda/build/build.py sm_90      # one, to see whether it compiles; writes nothing

CUDA 12.4 and not newer: what it makes is loaded by every driver of the CUDA 12 family. cargo needs none of this: the
compiled kernels are part of the repository, and a test fails when a source has changed since.
"""

import ctypes
import hashlib
import pathlib
import site
import sys
import zlib

KERNELS = pathlib.Path(__file__).resolve().parents[2]
OUT = KERNELS / "cuda" / "compiled"
# SASS per generation, and PTX that the driver of a newer chip translates.
TARGETS = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "compute_90"]


def package(*parts):
    for root in [*site.getsitepackages(), site.getusersitepackages()]:
        path = pathlib.Path(root, "nvidia", *parts)
        if path.exists():
            return path
    sys.exit(f"nvidia/{'/'.join(parts)} is missing: see the head of this file")


def sources():
    """Headers and kernels by their path under src/kernels, in a fixed order."""
    found = sorted([*KERNELS.glob("*/*.cu"), *KERNELS.glob("*/*.cuh")])
    return {path.relative_to(KERNELS).as_posix(): path.read_text() for path in found}


def compile_for(target, texts):
    nvrtc = ctypes.CDLL(str(package("cuda_nvrtc", "lib", "libnvrtc.so.12")))
    # One program that includes every kernel; NVRTC finds an include by the exact name it is written with.
    program_text = "".join(f'#include "../{name}"\n' for name in texts if name.endswith(".cu"))
    # Kernels include headers from their own folder, so every name starts with `../`.
    headers = [(f"../{name}", text) for name, text in texts.items()]
    array = ctypes.c_char_p * len(headers)
    names = array(*(name.encode() for name, _ in headers))
    bodies = array(*(text.encode() for _, text in headers))
    program = ctypes.c_void_p()
    create = nvrtc.nvrtcCreateProgram
    if create(ctypes.byref(program), program_text.encode(), b"kernels.cu", len(headers), bodies, names):
        sys.exit("nvrtcCreateProgram failed")
    options = [
        f"--gpu-architecture={target}",
        "--std=c++17",
        f"-I{package('cuda_runtime', 'include')}",
        f"-I{package('cuda_cccl', 'include')}",
    ]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if log.value.strip():
        print(log.value.decode(), file=sys.stderr)
    if status:
        sys.exit(f"{target}: does not compile")
    kind = "PTX" if target.startswith("compute_") else "CUBIN"
    getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    image = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind}")(program, image)
    return image.raw


def main():
    texts = sources()
    only = sys.argv[1:]
    if only:
        for target in only:
            image = compile_for(target, texts)
            pathlib.Path(f"{target}.cubin").write_bytes(image) if target.startswith("sm_") else None
            print(f"{target}: {len(image)} bytes")
        return
    OUT.mkdir(exist_ok=True)
    for target in TARGETS:
        image = compile_for(target, texts)
        packed = zlib.compress(image, 9)
        (OUT / f"{target}.z").write_bytes(packed)
        print(f"{target}: {len(image)} bytes, {len(packed)} compressed", flush=True)
    lines = [f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in texts.items()]
    (OUT / "manifest.txt").write_text("".join(lines))


main()
