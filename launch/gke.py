"""A job on TPU slices of a GKE cluster: as a JobSet through kubectl, or through xpk.

    python -m launch.gke run    JOB --accelerator v5p-64 --image IMAGE --claim CLAIM -- \
        lapa train --config FILE --workdir /mnt/lapa/runs/x
    python -m launch.gke tail   JOB
    python -m launch.gke delete JOB
    python -m launch.gke xpk    JOB --cluster CLUSTER --accelerator v5p-64 --image IMAGE -- ...

The cluster has node pools of the slices, JobSet, and for data and runs a PersistentVolumeClaim that
all hosts may write (Filestore, or Cloud Storage through its FUSE driver). The JobSet starts all
pods again when one fails, which is what a lost machine looks like. Labels and chips of a host are
from docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
"""

import argparse
import json
import math
import shlex
import sys
from typing import Any

from launch import xla_flags
from launch.shell import Shell, checked_env_file, given, needed, run_tool, supervised
from launch.tpu_shapes import SLICES

MOUNT = "/mnt/lapa"
CHIPS_PER_HOST = 4
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}


def main(argv: list[str] | None = None) -> int:
    """One of the actions above."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.gke", description="Runs a job on TPU slices of a GKE cluster."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    job = argparse.ArgumentParser(add_help=False)
    job.add_argument("job", help="its name")
    job.add_argument("--dry_run", action="store_true", help="print the commands")
    namespace = argparse.ArgumentParser(add_help=False)
    namespace.add_argument("--namespace", default="default")
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--accelerator", required=True, help="v5p-64, v6e-256, tpu7x-64, ...")
    machine.add_argument("--slices", type=int, default=1)
    machine.add_argument("--spot", action="store_true", help="on nodes that may be taken away")
    machine.add_argument("--image", required=True, help="built from launch/docker/tpu.Dockerfile")
    machine.add_argument("--restarts", type=int, default=100, help="of all pods (default 100)")
    machine.add_argument("--save_seconds", type=int, default=300, help="for saving at the end")
    volume = argparse.ArgumentParser(add_help=False)
    volume.add_argument("--claim", required=True, help=f"PersistentVolumeClaim, mounted at {MOUNT}")
    volume.add_argument("--secret", help="Kubernetes secret whose entries become variables")
    xpk = argparse.ArgumentParser(add_help=False)
    xpk.add_argument("--cluster", required=True)
    xpk.add_argument("--zone")
    xpk.add_argument("--project")
    xpk.add_argument("--env_file", help="NAME=VALUE lines, secrets too")
    for name, parents, does in (
        ("run", [job, namespace, machine, volume], "starts the command behind -- as a JobSet"),
        ("tail", [job, namespace], "follows the output of the first host"),
        ("delete", [job, namespace], "ends the job; its nodes are free"),
        ("xpk", [job, machine, xpk], "starts the command behind -- through xpk"),
    ):
        actions.add_parser(name, parents=parents, help=does, description=does)
    return run_tool(parser, _work, argv)


def _work(args: argparse.Namespace, command: list[str], shell: Shell) -> None:
    if args.action == "run":
        manifest = json.dumps(jobset(args, needed(command)), indent=1)
        shell.run(["kubectl", "apply", "-f", "-"], stdin=manifest)
    elif args.action == "xpk":
        shell.run(_xpk(args, needed(command)))
    elif command:
        raise ValueError(f"{args.action} takes no command, got {shlex.join(command)!r}")
    elif args.action == "tail":
        pods = (
            f"jobset.sigs.k8s.io/jobset-name={args.job},batch.kubernetes.io/job-completion-index=0"
        )
        follow = ["--follow", "--tail=100", "--prefix", f"--selector={pods}"]
        shell.run(["kubectl", "logs", f"--namespace={args.namespace}", *follow])
    else:
        shell.run(["kubectl", "delete", "jobset", args.job, f"--namespace={args.namespace}"])


def shape(accelerator: str) -> tuple[str, str, int, int]:
    """A slice by its Cloud TPU name: GKE's label, topology, number of hosts, chips of a host.

    Slices of one host with eight chips, and those below four chips, are not among them.
    """
    chip = xla_flags.chip_of(accelerator)
    if chip not in SLICES:
        raise ValueError(f"--accelerator {accelerator} is no TPU")
    count = accelerator.rpartition("-")[2]
    if not count.isdecimal():
        raise ValueError(f"--accelerator {accelerator}: give the size too, for example {chip}-64")
    topology = SLICES[chip].get(int(count))
    if topology is None:
        sizes = ", ".join(f"{chip}-{size}" for size in SLICES[chip])
        raise ValueError(f"--accelerator {accelerator}: known are {sizes}")
    chips = math.prod(map(int, topology.split("x")))
    return ACCELERATORS[chip], topology, chips // CHIPS_PER_HOST, CHIPS_PER_HOST


def jobset(args: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    """The JobSet: one replicated job of as many indexed pods as a slice has hosts."""
    accelerator, topology, hosts, chips = shape(args.accelerator)
    variables = xla_flags.environment(args.accelerator, slices=args.slices)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    if args.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    container = {
        "name": "lapa",
        "image": args.image,
        "command": supervised(command, args.save_seconds),
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        # For JAX to find the others of its slice, and of other slices.
        "ports": [{"containerPort": port} for port in (8471, 8080)],
        "resources": {"limits": {"google.com/tpu": chips}},
        "volumeMounts": [{"name": "shared", "mountPath": MOUNT}],
    }
    if args.secret:
        container["envFrom"] = [{"secretRef": {"name": args.secret}}]
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": args.save_seconds,
        "nodeSelector": selector,
        "tolerations": [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": args.claim}}],
    }
    job = {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,  # one pod lost: the job fails, and the JobSet starts all again
        # But not where a supervisor has given up, or the command was wrong.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "lapa", "operator": "In", "values": [1, 2]},
                }
            ]
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": args.job,
            "namespace": args.namespace,
            # One slice to a node pool.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": args.restarts,
                "rules": [
                    {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": args.slices, "template": {"spec": job}}
            ],
        },
    }


def _xpk(args: argparse.Namespace, command: list[str]) -> list[str]:
    variables = xla_flags.environment(args.accelerator, slices=args.slices)
    words = supervised(command, args.save_seconds)
    exports = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    line = " ".join([*exports, shlex.join(words)])
    return [
        "xpk",
        "workload",
        "create",
        f"--workload={args.job}",
        f"--cluster={args.cluster}",
        *given(args, "zone", "project"),
        f"--tpu-type={args.accelerator.replace('v5e-', 'v5litepod-')}",
        f"--num-slices={args.slices}",
        *(["--spot"] if args.spot else []),
        f"--docker-image={args.image}",
        f"--max-restarts={args.restarts}",
        "--restart-on-user-code-failure",
        f"--termination-grace-period-seconds={args.save_seconds}",
        *([f"--env-file={checked_env_file(args.env_file)}"] if args.env_file else []),
        f"--command={line}",
    ]


if __name__ == "__main__":
    sys.exit(main())
