"""`studio`: the web page and REST API on this machine."""

import argparse
import ipaddress
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.errors import UserError

if TYPE_CHECKING:
    from dreambooth.studio.guard import Access
    from dreambooth.studio.workspace import Workspace

HOST = "127.0.0.1"
PORT = 7870


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        default=HOST,
        metavar="H",
        help=f"address to listen on (default {HOST}, this machine alone; one that others reach demands a token, which "
        "is shown once)",
    )
    parser.add_argument("--port", type=int, default=PORT, metavar="P", help=f"default {PORT}")
    parser.add_argument(
        "--workspace", type=Path, default=Path(), metavar="DIR",
        help="folder with data/, checkpoints/, outputs/ (default: this one)",
    )  # fmt: skip
    parser.add_argument(
        "--devices",
        metavar="D1,D2",
        help="cpu, or GPUs as cuda:0,cuda:1: one job at a time on each (default: all NVIDIA's GPUs; without one auto, "
        "what a job finds itself)",
    )
    parser.add_argument(
        "--allowed-host", metavar="NAME", action="append", default=[],
        help="name by which browsers reach this server from elsewhere (repeatable)",
    )  # fmt: skip
    parser.add_argument("--new-token", action="store_true", help="make a new token; the one before is no longer valid")


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    try:
        from dreambooth.studio.app import create_app
        from dreambooth.studio.server import StudioServer
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "starlette", "uvicorn", "python_multipart", "fcntl", "resource"):
            raise
        raise UserError(f"studio: needs {error.name}; pip install 'dreambooth[studio]' (Linux or macOS)") from error
    from filelock import FileLock, Timeout

    from dreambooth.studio.worker import find_devices
    from dreambooth.studio.workspace import Workspace

    workspace = Workspace(args.workspace)
    workspace.prepare()
    listening = listen(args.host, args.port)
    try:
        with listening, FileLock(workspace.own / "server.lock", blocking=False):
            access = find_access(args, workspace)
            devices = args.devices.split(",") if args.devices else find_devices()
            server = StudioServer(create_app(workspace, access, devices))
            port = listening.getsockname()[1]
            print(f"studio: http://{shown_host(args.host)}:{port} (Ctrl-C ends it; jobs that run go on)", flush=True)
            server.run(sockets=[listening])
    except Timeout as error:
        raise UserError(f"--workspace {workspace.root}: another studio works there; open or end that one") from error
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for a port, devices or a workspace that cannot be."""
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: must be 0 to 65535; 0 takes a free one")
    if not args.workspace.is_dir():
        raise UserError(f"--workspace {args.workspace}: there is no such folder")
    for device in args.devices.split(",") if args.devices else ():
        if not re.fullmatch(r"auto|cpu|cuda:[\w-]+", device):
            raise UserError(f"--devices {args.devices}: {device!r} is none; write auto, cpu, or cuda:0,cuda:1")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises UserError where it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose another --port") from error


def is_own(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def shown_host(host: str) -> str:
    """Return a host as it stands in an address: that of every interface is this machine's name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def find_access(args: argparse.Namespace, workspace: "Workspace") -> "Access":
    """Return who may use the studio. For others than this machine a token is made once, and shown once."""
    from dreambooth.studio.guard import Access
    from dreambooth.studio.token import TokenFile

    hosts = [name.lower() for name in (*args.allowed_host, args.host)]
    if is_own(args.host):
        return Access(hosts=hosts)
    token = TokenFile(workspace.own / "token.json")
    if args.new_token or not token.exists():
        print(f"token: {token.renew()}\nIt is shown this once; --new-token makes another.", flush=True)
    return Access(token, [*hosts, socket.gethostname().lower()])
