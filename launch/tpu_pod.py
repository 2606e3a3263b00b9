"""A TPU slice, or several, as a Cloud TPU queued resource: from nothing to a supervised run.

    python -m launch.tpu_pod create  POD --accelerator v5p-64 --spot
    python -m launch.tpu_pod install POD --image IMAGE --nfs SERVER:/SHARE
    python -m launch.tpu_pod run     POD --image IMAGE -- lapa train ... --workdir /mnt/lapa/runs/x
    python -m launch.tpu_pod tail    POD
    python -m launch.tpu_pod stop    POD        # saves, and stops
    python -m launch.tpu_pod delete  POD
    python -m launch.tpu_pod keep    POD ...    # all of it, and again after every preemption

Every host runs the image of launch/docker/tpu.Dockerfile with the same command. Data and run lie on
storage that all hosts share, mounted at /mnt/lapa on the hosts and in the container. Commands are
those of docs.cloud.google.com/tpu/docs/queued-resources; runtime versions are from
docs.cloud.google.com/tpu/docs/runtimes. TPU7x is not offered this way: launch/gke.py.
"""

import argparse
import shlex
import sys
import time

from lapa_jax.machine import xla_flags

from .check import check_on_slices
from .shell import Action, Shell, checked_env_file, given, run_tool, supervised

RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
MOUNT = "/mnt/lapa"
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
CONTAINER = "lapa"
ENV_FILE = ".lapa.env"  # on the hosts, in the home directory
DRAIN_SECONDS = 600  # for saving, when the container is stopped
POLL_SECONDS = 60.0
GONE = ("SUSPENDED", "SUSPENDING", "FAILED")  # states of a queued resource without machines


_WHERE = "pod --zone --project --slices"
_MACHINE = "--accelerator --spot --service_account --network"
_HOSTS = "--image --nfs --env_file"
ACTIONS = {
    "create": Action("asks for machines, waits until they are there", f"{_WHERE} {_MACHINE}"),
    "install": Action("storage, environment file, image, on every host", f"{_WHERE} {_HOSTS}"),
    "run": Action(
        "starts the command behind -- on every host", f"{_WHERE} --accelerator --image", True
    ),
    "tail": Action("follows the output of the first host", _WHERE),
    "stop": Action("the run saves its state and ends; the machines stay", _WHERE),
    "delete": Action("gives the machines back", _WHERE),
    "keep": Action(
        "create, install, run; again when taken away", f"{_WHERE} {_MACHINE} {_HOSTS}", True
    ),
}
FLAGS = {
    "pod": {"help": "its name; also that of the queued resource"},
    "--service_account": {"help": "that the machines act as"},
    "--network": {"help": "default: the project's default network"},
    "--nfs": {"help": f"SERVER:/SHARE to mount at {MOUNT} on every host"},
}


def main(argv: list[str] | None = None) -> int:
    """One of the actions above."""
    does = "Creates a TPU pod, runs a job on it, follows it, takes it down."
    return run_tool("tpu_pod", does, ACTIONS, FLAGS, _work, argv)


def _work(args: argparse.Namespace, command: list[str], shell: Shell) -> None:
    if command:
        check_on_slices(command, args.accelerator, args.slices, MOUNT)
    getattr(Pod(args, command, shell), args.action)()


class Pod:
    """The actions on one queued resource, as gcloud commands."""

    def __init__(self, args: argparse.Namespace, command: list[str], shell: Shell):
        self._args, self._command, self._shell = args, command, shell
        self._where = given(args, "zone", "project")

    def create(self) -> None:
        """Asks for the machines, and returns when they are there."""
        args = self._args
        chip = xla_flags.chip_of(args.accelerator)
        if chip not in RUNTIMES:
            raise ValueError(
                f"--accelerator {args.accelerator}: queued resources offer {', '.join(RUNTIMES)}; "
                f"TPU7x is on GKE only (launch/gke.py)"
            )
        nodes = [f"--node-id={args.pod}"]
        if args.slices > 1:
            nodes = [f"--node-count={args.slices}", f"--node-prefix={args.pod}"]
        self._queued(
            "create",
            f"--accelerator-type={args.accelerator.replace('v5e-', 'v5litepod-')}",
            f"--runtime-version={RUNTIMES[chip]}",
            *nodes,
            *given(args, "spot", "service_account", "network"),
        )
        while not self._shell.dry_run and (state := self.state()) != "ACTIVE":
            if state in GONE or state == "":
                raise ValueError(
                    f"{args.pod} is {state or 'gone'}: delete it, then create it again"
                )
            time.sleep(POLL_SECONDS)

    def state(self) -> str | None:
        """ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; empty where there is no such resource,
        None where gcloud does not know."""
        only = [f"--filter=name~/{self._args.pod}$", "--format=value(state.state)"]
        return self._shell.read([*QUEUED, "list", *self._where, *only])

    def install(self) -> None:
        """Makes every host ready; doing it again changes nothing."""
        args = self._args
        if args.nfs:
            steps = (
                f"sudo mkdir -p {MOUNT}",
                f"{{ mountpoint -q {MOUNT} || {{ sudo apt-get install -qq -y nfs-common && "
                f"sudo mount -t nfs {shlex.quote(args.nfs)} {MOUNT}; }}; }}",
            )
            self._on_all(" && ".join(steps))
        if args.env_file:
            self._on_all(f"umask 077 && touch {ENV_FILE}")
            copied = checked_env_file(args.env_file), f"{args.pod}:{ENV_FILE}"
            self._shell.run(self._to("scp", "all", *copied))
        # The first component of an Artifact Registry image is the server to log in to.
        server = shlex.quote(args.image.partition("/")[0])
        self._on_all(
            f"sudo gcloud auth configure-docker --quiet {server} && "
            f"sudo docker pull --quiet {shlex.quote(args.image)}"
        )

    def run(self) -> None:
        """Starts a container on every host, which goes on when this program ends."""
        args, command = self._args, self._command
        if command[:2] == ["lapa", "train"] and "--multihost" not in command:
            # Only their metadata server tells TPU VMs that they are several.
            command = [*command, "--multihost"]
        variables = xla_flags.environment(args.accelerator, slices=args.slices)
        docker = ["sudo", "docker", "run", "--detach", "--init", "--name", CONTAINER]
        docker += ["--privileged", "--net=host", f"--stop-timeout={DRAIN_SECONDS}"]
        docker += [f"--volume={MOUNT}:{MOUNT}", "--env-file", ENV_FILE]
        for name, value in variables.items():
            docker += ["--env", f"{name}={value}"]
        job = supervised(command, DRAIN_SECONDS)
        self._on_all(
            f"umask 077 && touch {ENV_FILE}; sudo docker rm {CONTAINER} >/dev/null 2>&1; "
            + shlex.join([*docker, args.image, *job])
        )

    def job(self) -> str | None:
        """`absent`, `running 0`, `exited 75`, ...; None where the first host does not answer."""
        fields = "'{{.State.Status}} {{.State.ExitCode}}'"
        ask = f"sudo docker inspect --format {fields} {CONTAINER} 2>/dev/null || echo absent"
        return self._shell.read(self._ssh(ask, "0"))

    def tail(self) -> None:
        """Follows what process 0 prints."""
        self._shell.run(self._ssh(f"sudo docker logs --follow --tail 100 {CONTAINER}", "0"))

    def stop(self) -> None:
        """SIGTERM to every supervisor, and time to save."""
        self._on_all(f"sudo docker stop {CONTAINER}")

    def delete(self) -> None:
        """Gives the machines back, and forgets the queued resource."""
        self._queued("delete", "--force", "--quiet")

    def keep(self) -> None:
        """Has the job run, on new machines where the old were taken away, until it is finished.

        Raises ValueError where the supervisor has given up: the machines stay, for a look at them.
        """
        state = self.state()
        if state is None:  # now it is a mistake; later it may be the network
            raise ValueError("gcloud does not list queued resources: its message is above")
        while True:
            if state in GONE:
                self.delete()
            if state in GONE or state == "":
                self.create()
            job = None if state is None else self.job()
            if job in ("exited 1", "exited 2"):
                raise ValueError(
                    f"the supervisor has given up ({job}): look with `tail`; the machines are "
                    "still there, and paid for until `delete`"
                )
            if job == "exited 0":
                return
            if job is not None and not job.startswith("running"):
                self.install()
                self.run()
            if self._shell.dry_run:
                return
            time.sleep(POLL_SECONDS)
            state = self.state()

    def _queued(self, action: str, *flags: str) -> None:
        self._shell.run([*QUEUED, action, self._args.pod, *self._where, *flags])

    def _on_all(self, command: str) -> None:
        self._shell.run(self._ssh(command, "all"))

    def _ssh(self, command: str, host: str) -> list[str]:
        return [*self._to("ssh", host, self._args.pod), f"--command={command}"]

    def _to(self, action: str, host: str, *targets: str) -> list[str]:
        """Of hosts: "all", or "0", the first of the first slice."""
        where = [action, *targets, *self._where, f"--worker={host}"]
        if self._args.slices == 1:
            return ["gcloud", "compute", "tpus", "tpu-vm", *where]
        return ["gcloud", "alpha", *QUEUED[1:], *where, f"--node={host}"]


if __name__ == "__main__":
    sys.exit(main())
