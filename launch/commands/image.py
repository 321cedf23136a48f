"""`deg image build`, `deg image pull` and `deg image check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from deg.launch.commands.arguments import ANY_PATH, json_option, print_json
from deg.launch.say import say

apptainer_option = click.option("--apptainer", default="apptainer", show_default=True, help="The program to use.")


@click.group()
def image() -> None:
    """Build, fetch and check the Apptainer image that jobs on a cluster run in.

    \b
    Example: deg image build --dry-run
    """


@image.command()
@click.option(
    "--flavour", type=click.Choice(["cu13", "cu12"]), default="cu13", show_default=True, help="CUDA 13 or 12."
)
@click.option(
    "--base", help="What to build on: an address such as docker://NAME@sha256:..., an image file or a folder."
)
@click.option("--to", "target", type=ANY_PATH, help="File to write. Default: deg-VERSION-FLAVOUR.sif, here.")
@click.option(
    "--with",
    "files",
    multiple=True,
    metavar="PATH[:PLACE]",
    help="A file or folder that the building stage needs at PLACE (default: at the same path), such as pip's "
    "configuration or certificates. The image does not keep it. Repeatable.",
)
@click.option("--compression", type=click.Choice(["gzip", "zstd", "lz4"]), default="gzip", show_default=True)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@apptainer_option
@json_option
def build(
    flavour: str,
    base: str | None,
    target: Path | None,
    files: Sequence[str],
    compression: str,
    dry_run: bool,
    apptainer: str,
    as_json: bool,
) -> int:
    """Build the image of this version of deg. It takes minutes. The image is tested before it gets its name.

    \b
    Example: deg image build --flavour cu12 --dry-run
    """
    from deg import containers
    from deg.launch.image.build import BASE, Build
    from deg.launch.image.build import build as build_image
    from deg.version import __version__

    order = Build(
        kind=containers.flavour(flavour),
        target=target or Path(f"deg-{__version__}-{flavour}.sif"),
        base=base or BASE,
        compression=compression,
        files=tuple(_file_and_place(words) for words in files),
    )
    document = {"image": str(order.target), "arguments": order.arguments()}
    for line in order.describe():
        say(line)
    if not dry_run:
        document["sha256"] = build_image(order, say, apptainer)
        say(f"{order.target}: sha256 {document['sha256']}")
    if as_json:
        print_json(document)
    return 0


def _file_and_place(words: str) -> tuple[Path, str]:
    path, _, place = words.partition(":")
    if not Path(path).exists():
        raise click.UsageError(f"--with {words}: expected a file or folder, found nothing there.")
    return Path(path), place or str(Path(path).absolute())


@image.command()
@click.argument("uri")
@click.option("--to", "folder", type=ANY_PATH, default=".", help="Folder that all nodes see. Default: the current one.")
@click.option("--sha256", help="Checksum that the file must have. Without it, the file's own is recorded and shown.")
@apptainer_option
@json_option
def pull(uri: str, folder: Path, sha256: str | None, apptainer: str, as_json: bool) -> int:
    """Fetch an image once, on the login node; jobs then only read it. Run again to verify what is there.

    URI begins with oras://, docker://, library:// or https://.

    \b
    Example: deg image pull oras://registry.example.org/lab/deg:0.1.0 --to /shared/images
    """
    from deg.launch.image.file import digest_file
    from deg.launch.image.file import pull as pull_image

    found = pull_image(uri, folder, say, sha256=sha256, program=apptainer)
    digest = digest_file(found).read_text().split()[0]
    say(f"{found}: sha256 {digest}")
    if as_json:
        print_json({"image": str(found), "sha256": digest})
    return 0


@image.command()
@click.argument("file", type=ANY_PATH, metavar="IMAGE")
@click.option("--quick", is_flag=True, help="Skip the image's own test, which takes a minute.")
@apptainer_option
@json_option
def check(file: Path, quick: bool, apptainer: str, as_json: bool) -> int:
    """Check that an image is whole, of this version and fit for this machine's driver, and passes its own test here.

    \b
    Example: deg image check deg.sif
    """
    from deg.launch.findings import exit_status
    from deg.launch.image.check import check_image

    findings = []
    for finding in check_image(file, apptainer, quick=quick):
        findings.append(finding)
        if not as_json:
            say(f"{finding.state:10s} {finding.check}: {finding.sentence()}")
    status = exit_status(findings)
    if as_json:
        print_json({"image": str(file), "findings": [f.as_dict() for f in findings], "exit_status": status})
    return status
