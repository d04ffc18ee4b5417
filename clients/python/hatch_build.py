"""Generates the messages of the protocol before the package is built."""

import sys
from pathlib import Path
from subprocess import run
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def proto_folder(root: Path) -> Path | None:
    """Returns the folder of the proto files. A source distribution has none."""
    folder = root.parent.parent / "proto"
    return folder if (folder / "countersign" / "v1").is_dir() else None


def generate(root: Path) -> None:
    """Generates the messages, and their types, into the package."""
    folder = proto_folder(root)
    if folder is None:
        return
    target = root / "src"
    files = sorted(str(file.relative_to(folder)) for file in folder.glob("countersign/v1/*.proto"))
    outputs = [f"--python_out={target}", f"--pyi_out={target}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(folder), *outputs, *files]
    run(command, check=True)  # noqa: S603


class ProtoHook(BuildHookInterface[Any]):
    """The hook that hatchling calls."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Returns the packages that the hook needs."""
        return [] if proto_folder(Path(self.root)) is None else ["grpcio-tools==1.76.0"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generates the messages before the files of the package are collected."""
        del version, build_data
        generate(Path(self.root))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parent)
