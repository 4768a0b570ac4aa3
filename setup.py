"""Builds the compiled kernels of methods/lowrank, where there is a C++ compiler; without one the package installs too.

The library has a C interface and links neither Python nor torch. Its kernels are compiled once per instruction set, and
the one that fits the processor is chosen when it runs.
"""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CODE = Path("methods/lowrank/native_code")
X86_LEVELS = ("v2", "v3", "v4")
FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall"]


class BuildKernels(build_ext):
    """Compiles kernels.cpp once per instruction set, then links one library."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the library's path without the interpreter's tag: it does not depend on one."""
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Build the library; setuptools turns a failure into a warning, as the extension is optional."""
        objects: dict[str, list[str]] = {}
        for level in X86_LEVELS if platform.machine().lower() in ("x86_64", "amd64") else ("generic",):
            flags = [*FLAGS, f"-DLOWRANK_KERNELS=lowrank_kernels_{level}"]
            flags += [] if level == "generic" else [f"-march=x86-64-{level}"]
            try:
                objects[level] = self._compiled("kernels.cpp", level, flags)
            except CompileError as why:  # an older compiler does not know the newest instruction sets
                self.warn(f"the kernels are built without {level}: {why}")
        if not objects:
            raise CompileError("the kernels could not be compiled for any instruction set")
        found = [f"-DLOWRANK_{level.upper()}" for level in objects]
        linked = [each for compiled in objects.values() for each in compiled]
        linked += self._compiled("dispatch.cpp", "dispatch", [*FLAGS, *found])
        path = Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(linked, str(path), libraries=["pthread"], target_lang="c++")

    def _compiled(self, source: str, name: str, flags: list[str]) -> list[str]:
        out = str(Path(self.build_temp) / name)
        depends = [str(CODE / "abi.h"), str(CODE / "lanes.h")]
        return self.compiler.compile([str(CODE / source)], output_dir=out, extra_postargs=flags, depends=depends)


setup(
    ext_modules=[
        Extension("methods.lowrank._native", [str(CODE / "kernels.cpp"), str(CODE / "dispatch.cpp")], optional=True)
    ],
    cmdclass={"build_ext": BuildKernels},
)
