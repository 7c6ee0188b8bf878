# SPDX-License-Identifier: Apache-2.0
"""``vision-accel <command>``. One module per command; a module is imported only when its command runs.

Exit codes: 0 all well; 1 an error of vision-accel itself, or a demo that failed; 2 bad input or usage,
nothing was done; 3 finished, but some images could not be read (each is named on stderr); 130 interrupted.
Results go to stdout, messages and progress to stderr.
"""

import os
import sys
from importlib import import_module

from vision_accel import __version__
from vision_accel._suggest import did_you_mean

SOME_IMAGES_BAD = 3
# Modules that no extra brings -> what to install.
PACKAGES = {"sklearn": "scikit-learn", "skimage": "scikit-image"}

# Command -> what it does. The module of the same name has run(argv) -> exit code.
COMMANDS = {
    "info": "show the build, the instruction set, threads and devices",
    "demo": "train and show a small ViT (demo), CLIP (demo clip) or AutoencoderKL (demo autoencoder-kl)",
    "train": "train a model on a folder of images:  train vit --help",
    "eval": "top-1 and top-5 accuracy of a classifier or a CLIP on a labelled folder",
    "classify": "label images: files, folders or patterns",
    "zero-shot": "label images with words of your own, by a CLIP",
    "similarity": "how well images fit texts, by a CLIP",
    "embed": "write the features of images or texts to a file",
    "search": "find the images of such a file that fit a text or an image",
    "reconstruct": "pass images through an autoencoder: PSNR, pictures, latents",
    "decode": "pictures of latents: from a file, between two of them, or drawn at random",
    "data": "write, index and check webdataset tars:  data --help",
    "convert": "rewrite a model directory in another layout (hf, timm, open_clip, diffusers, ldm)",
    "bench": "measure images per second of a model; bench data: of the loaders",
}


def usage() -> str:
    """The text of ``vision-accel --help``."""
    width = max(map(len, COMMANDS))
    lines = ["usage: vision-accel COMMAND [OPTIONS]", ""]
    lines += [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    lines += [
        "",
        "vision-accel COMMAND --help lists the options of a command.",
        "--config FILE.yaml sets the same options from a file; flags win over it.",
        "--debug shows the traceback of an error.",
        "Exit codes: 0 ok, 2 bad input or usage, 3 some images could not be read, 130 interrupted.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; never raises for bad input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if argv else 2
    if argv[0] in {"-V", "--version"}:
        print(__version__)
        return 0
    command = argv[0]
    try:
        if command not in COMMANDS:
            raise ValueError(f"unknown command {command!r}{did_you_mean(command, COMMANDS)}")
        code: int = import_module(f"vision_accel.cli.{command.replace('-', '_')}").run(argv[1:])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\nvision-accel: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `vision-accel ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        prefix = f"vision-accel {command}" if command in COMMANDS else "vision-accel"
        print(f"{prefix}: {one_line(error)}", file=sys.stderr)
        return 2 if is_users(error) else 1


def is_users(error: Exception) -> bool:
    """Whether the user can mend this error; anything else is a fault of ours."""
    ours = type(error).__module__.startswith("vision_accel.")
    return ours or isinstance(error, ValueError | TypeError | OSError | ImportError)


def one_line(error: Exception) -> str:
    """The message of an error on one line, naming the file or the package it is about."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("vision_accel"):
        package = PACKAGES.get(error.name.partition(".")[0], "'vision-accel[train]'")
        return f"this command needs {error.name}: pip install {package}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    text = " ".join(str(error).split())
    if is_users(error):
        return text or type(error).__name__
    return f"internal error: {type(error).__name__}: {text} (--debug shows the traceback)"
