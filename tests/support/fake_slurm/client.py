"""The fake's sbatch, squeue and so on: `python client.py PROGRAM WORDS...`. It imports little, to start in 20 ms.

All except srun ask the server and print its answer. srun runs the tasks itself, as its own children.
"""

import json
import os
import socket
import sys


def folder_of_server():
    folder = os.environ.get("FAKE_SLURM")
    if not folder:
        sys.exit("fake Slurm: the variable FAKE_SLURM does not name its folder")
    return folder


def ask(folder, **question):
    """Return the answer of the server in `folder`."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as connection:
            # the name of a socket may have at most 107 bytes
            connection.connect(f"/proc/self/fd/{descriptor}/socket")
            os.close(descriptor)
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(question) + "\n")
                stream.flush()
                return json.loads(stream.readline())
    except OSError as error:
        sys.exit(f"slurm_load_jobs error: Unable to contact slurm controller ({error})")


def batch_script(words):
    """Return the script for sbatch: the file that the first word names, else standard input; nothing for --wrap."""
    from fake_slurm.options import SBATCH, Refused, parse_words

    try:
        options, rest = parse_words(words, SBATCH, "sbatch")
    except Refused:
        return ""  # the server will report that
    if "wrap" in options:
        return ""
    if not rest:
        return sys.stdin.read()
    try:
        with open(rest[0]) as file:  # noqa: PTH123 - pathlib takes longer to import than the rest together
            return file.read()
    except OSError:
        sys.exit(f"sbatch: error: Unable to open file {rest[0]}")


def main(program, words):
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    if program == "srun" and words[:1] not in (["--version"], ["-V"]):
        from fake_slurm.steps import srun

        return srun(words)
    question = {"program": "sbatch" if program == "srun" else program, "words": words}
    if program == "sbatch":
        here = os.getcwd()  # noqa: PTH109
        question.update(cwd=here, environment=dict(os.environ), script=batch_script(words))
    said = ask(folder_of_server(), ask="command", **question)
    sys.stderr.write(said["err"])
    sys.stdout.write(said["out"])
    return said["status"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
