#!/usr/bin/env python3
"""Makes link-time stand-ins for the CUDA libraries, so that one binary starts with or without a driver.

    lazy_stubs.py CUDARC_SOURCE OUT_FOLDER

The functions are read from cudarc's own declarations, so a new cudarc needs no list to be mended.
Each OUT_FOLDER/lib<name>.a holds one small entry point per function: it jumps to the real function,
which lazy_loader.c finds at the first call. x86-64 and ELF only.
"""
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

# link name: (cudarc room, status when absent, file names)
LIBRARIES = {
    "cuda": ("driver", 34, ["libcuda.so.1"]),  # CUDA_ERROR_STUB_LIBRARY
    "cublas": ("cublas", 1, ["libcublas.so.13", "libcublas.so.12"]),  # CUBLAS_STATUS_NOT_INITIALIZED
    "cublasLt": ("cublaslt", 1, ["libcublasLt.so.13", "libcublasLt.so.12"]),
    "curand": ("curand", 203, ["libcurand.so.10"]),  # CURAND_STATUS_INITIALIZATION_FAILED
    "nvrtc": ("nvrtc", 11, ["libnvrtc.so.13", "libnvrtc.so.12"]),  # NVRTC_ERROR_INTERNAL_ERROR
    "nccl": ("nccl", 2, ["libnccl.so.2"]),  # ncclSystemError
}
DECLARATION = re.compile(r'extern "C" \{\s*fn (\w+)\([^;]*?\)\s*(?:->\s*([^;]+?))?\s*;')

# The entry point of a function not yet found lands here with its index in r11d. Whatever the caller
# passed in registers is kept for the real function: 6 integer and 8 vector registers. 184 bytes
# bring the stack, 8 off at a function's entry, to the 16-byte boundary that a call needs.
FIND_THEN_JUMP = """
.Lfind:
    subq $184, %rsp
    movq %rdi, 128(%rsp)
    movq %rsi, 136(%rsp)
    movq %rdx, 144(%rsp)
    movq %rcx, 152(%rsp)
    movq %r8, 160(%rsp)
    movq %r9, 168(%rsp)
{save}
    movl %r11d, %edi
    call rlvr_resolve
    movq %rax, %r11
{restore}
    movq 128(%rsp), %rdi
    movq 136(%rsp), %rsi
    movq 144(%rsp), %rdx
    movq 152(%rsp), %rcx
    movq 160(%rsp), %r8
    movq 168(%rsp), %r9
    addq $184, %rsp
    jmp *%r11
"""


def declared(source, room):
    """Function name -> 'e' (status), 's' (string) or 'z' (size or nothing)."""
    found = {}
    for name, returns in DECLARATION.findall((source / room / "sys" / "mod.rs").read_text()):
        if "c_char" in returns:
            kind = "s"
        elif returns in ("", "usize"):
            kind = "z"
        else:
            kind = "e"
        found[name] = kind
    return sorted(found.items())


def assembly(functions):
    entries, names, imports, targets = [], [], [], []
    for i, (name, kind) in enumerate(functions):
        entries.append(
            f".globl {name}\n.type {name}, @function\n{name}:\n    jmp *.Lt{i}(%rip)\n"
            f".Lf{i}:\n    movl ${i}, %r11d\n    jmp .Lfind\n.size {name}, . - {name}\n"
        )
        names.append(f'.Ln{i}: .asciz "{name}"\n')
        imports.append(f"    .quad .Ln{i}, {ord(kind)}\n")
        targets.append(f".Lt{i}: .quad .Lf{i}\n")
    save = "\n".join(f"    movups %xmm{i}, {16 * i}(%rsp)" for i in range(8))
    restore = "\n".join(f"    movups {16 * i}(%rsp), %xmm{i}" for i in range(8))

    def table(label, rows):
        return f".balign 8\n.globl {label}\n.hidden {label}\n{label}:\n" + "".join(rows)

    return "".join(
        [".text\n", *entries, FIND_THEN_JUMP.format(save=save, restore=restore)]
        + ['.section .rodata.str, "a"\n', *names]
        + ['.section .data.rel.ro, "aw"\n', table("rlvr_imports", imports)]
        + [".data\n", table("rlvr_targets", targets)]
        + ['.section .note.GNU-stack, "", @progbits\n']
    )


def build(link_name, functions, status, file_names, out, work):
    code, stub, loader, merged = (work / f"{link_name}{s}" for s in (".s", ".o", "_loader.o", "_lazy.o"))
    code.write_text(assembly(functions))
    loader_source = pathlib.Path(__file__).with_name("lazy_loader.c")
    quoted = ", ".join(f'"{n}"' for n in file_names)
    run = lambda *command: subprocess.run([str(c) for c in command], check=True)
    run("cc", "-c", code, "-o", stub)
    run("cc", "-O2", "-fPIC", "-Wall", "-Wextra", f"-DLIBRARY_NAMES={quoted}", f"-DABSENT_STATUS={status}",
        "-c", loader_source, "-o", loader)
    # One object per library, with the names the two halves share made local: six libraries use them.
    run("ld", "-r", stub, loader, "-o", merged)
    run("objcopy", *(f"--localize-symbol=rlvr_{s}" for s in ("imports", "targets", "resolve")), merged)
    archive = out / f"lib{link_name}.a"
    archive.unlink(missing_ok=True)
    run("ar", "rcs", archive, merged)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    if platform.machine() != "x86_64":
        sys.exit(f"lazy_stubs.py: {platform.machine()}: only x86-64 stubs exist; link against an installed CUDA toolkit instead")
    source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as work:
        for link_name, (room, status, file_names) in LIBRARIES.items():
            functions = declared(source, room)
            if not functions:
                sys.exit(f"lazy_stubs.py: {source}/{room}: no functions found there; has cudarc changed how it declares them?")
            build(link_name, functions, status, file_names, out, pathlib.Path(work))
            print(f"lib{link_name}.a: {len(functions)} functions")


if __name__ == "__main__":
    main()
