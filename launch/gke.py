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
import re
import shlex
import sys
from typing import Any

from lapa_jax.machine import xla_flags

from .check import check_on_slices, slice_shape
from .shell import (
    NEEDED,
    Action,
    Shell,
    assignments,
    at_least,
    checked_env_file,
    given,
    run_tool,
    supervised,
)

MOUNT = "/mnt/lapa"
CHIPS_PER_HOST = 4
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}


_MACHINE = "--accelerator --slices --spot --image --restarts --save_seconds"
ACTIONS = {
    "run": Action(
        "starts the command behind -- as a JobSet",
        f"job --namespace {_MACHINE} --claim --secret",
        takes_command=True,
    ),
    "tail": Action("follows the output of the first host", "job --namespace"),
    "delete": Action("ends the job; its nodes are free", "job --namespace"),
    "xpk": Action(
        "starts the command behind -- through xpk",
        f"job {_MACHINE} --cluster --zone --project --env_file",
        takes_command=True,
    ),
}
FLAGS = {
    "job": {"help": "its name"},
    "--namespace": {"default": "default"},
    "--restarts": {"type": at_least(0), "default": 100, "help": "of all pods (default 100)"},
    "--claim": {**NEEDED, "help": f"PersistentVolumeClaim, mounted at {MOUNT}"},
    "--secret": {"help": "Kubernetes secret whose entries become variables"},
    "--cluster": NEEDED,
}


def main(argv: list[str] | None = None) -> int:
    """One of the actions above."""
    does = "Runs a job on TPU slices of a GKE cluster."
    return run_tool("gke", does, ACTIONS, FLAGS, _work, argv)


def _work(args: argparse.Namespace, command: list[str], shell: Shell) -> None:
    if command:
        # What xpk's clusters mount is theirs to say.
        mount = MOUNT if args.action == "run" else ""
        check_on_slices(command, args.accelerator, args.slices, mount)
        if not re.fullmatch("[a-z]([-a-z0-9]{0,38}[a-z0-9])?", args.job):
            raise ValueError(
                f"job {args.job} must be a name of Kubernetes: a-z, 0-9 and -, 40 at most, first a "
                f"letter"
            )
    if args.action == "run":
        manifest = json.dumps(jobset(args, command), indent=1)
        shell.run(["kubectl", "apply", "-f", "-"], stdin=manifest)
    elif args.action == "xpk":
        shell.run(_xpk(args, command))
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
    chip, topology = slice_shape(accelerator)
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
    # Where a supervisor has given up, or the command was wrong, nothing is started again.
    given_up = {"containerName": "lapa", "operator": "In", "values": [1, 2]}
    job = {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,  # one pod lost: the job fails, and the JobSet starts all again
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": given_up}]},
        "template": {"spec": pod},
    }
    slices = {"name": "slice", "replicas": args.slices, "template": {"spec": job}}
    rule = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    pools = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        # One slice to a node pool.
        "metadata": {"name": args.job, "namespace": args.namespace, "annotations": pools},
        "spec": {
            "failurePolicy": {"maxRestarts": args.restarts, "rules": [rule]},
            "replicatedJobs": [slices],
        },
    }


def _xpk(args: argparse.Namespace, command: list[str]) -> list[str]:
    variables = assignments(xla_flags.environment(args.accelerator, slices=args.slices))
    job = shlex.join(supervised(command, args.save_seconds))
    return [
        *("xpk", "workload", "create"),
        f"--workload={args.job}",
        *given(args, "cluster", "zone", "project"),
        f"--tpu-type={args.accelerator.replace('v5e-', 'v5litepod-')}",
        f"--num-slices={args.slices}",
        *given(args, "spot"),
        f"--docker-image={args.image}",
        f"--max-restarts={args.restarts}",
        "--restart-on-user-code-failure",
        f"--termination-grace-period-seconds={args.save_seconds}",
        *([f"--env-file={checked_env_file(args.env_file)}"] if args.env_file else []),
        f"--command={' '.join([*variables, job])}",
    ]


if __name__ == "__main__":
    sys.exit(main())
