"""Which processes make up this run: from flags, or from what the scheduler has put into the environment.

A cluster that is described in part is an error, because the alternative is n jobs that train apart and never say so.
"""

import atexit
import dataclasses
import re
import socket
from collections.abc import Mapping

from curia2_jax.ending import STOPPED, end_now
from curia2_jax.errors import UserError
from curia2_jax.parallel import peers, rendezvous

# The processes of a job meet at a port that follows from the number of the job, so that two jobs on a node do not.
_FIRST_PORT, _PORTS = 61_440, 4096
_TPU_PORT = 8476
_SLOWEST = 15 * 60  # seconds for all processes to come: a node that pulls its image starts minutes after the others
_JAX_WAITS = 4  # times as long as we do: its own word for a silent process is SIGABRT in all others
EXPLICIT = ("--coordinator", "--num-processes", "--process-id")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What `jax.distributed.initialize` wants to know."""

    source: str
    coordinator: str  # host:port of process 0
    processes: int
    process: int
    local_devices: tuple[int, ...] | None = None  # of this process, where several share a node; None: all of the node


def cluster(
    env: Mapping[str, str], coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Cluster | None:
    """The cluster that flags or `env` describe; None for a run of one process.

    Args:
      env: os.environ. coordinator, processes, process: the flags; all three, or none, or the coordinator alone, which
        then replaces the one of the environment.
    Raises:
      UserError: a description that is incomplete or contradicts itself.
    """
    if processes is not None or process is not None:
        if coordinator is None or processes is None or process is None:
            given = zip(EXPLICIT, (coordinator, processes, process), strict=True)
            missing = next(flag for flag, value in given if value is None)
            raise UserError(f"{missing}: missing; write all of {', '.join(EXPLICIT)}, or none of them")
        return _checked(Cluster("flags", coordinator, processes, process))
    for read in (_jax, _open_mpi, _slurm, _tpu, _indexed_job):
        found = read(env)
        if found is not None:
            if found.processes == 1:
                return None
            return _checked(dataclasses.replace(found, coordinator=coordinator) if coordinator else found)
    if coordinator:
        raise UserError("--num-processes: missing; write all of " + ", ".join(EXPLICIT) + ", or none of them")
    return None


def _checked(c: Cluster) -> Cluster:
    if c.processes < 1 or not 0 <= c.process < c.processes:
        raise UserError(
            f"{c.source}: process {c.process} of {c.processes}; processes are numbered from 0 to {c.processes - 1}"
        )
    if not c.coordinator:
        raise UserError(f"{c.source}: the address of process 0 is not known; write --coordinator=HOST:PORT")
    address = re.fullmatch(r"\S+:(\d+)", c.coordinator)
    if not address or not 0 < int(address[1]) < 65_536:
        raise UserError(f"{c.source}: coordinator {c.coordinator!r}; write HOST:PORT of process 0")
    return c


def _number(env: Mapping[str, str], name: str, source: str) -> int:
    if name not in env:
        raise UserError(f"{source}: {name} is not set; {_hint(source)}")
    if not env[name].strip().isdigit():
        raise UserError(f"{source}: {name}={env[name]!r}; a whole number was expected")
    return int(env[name])


def _hint(source: str) -> str:
    flags = f"or say it with {', '.join(EXPLICIT)}"
    return {"SLURM": f"start every process with srun, {flags}"}.get(source, f"start through the scheduler, {flags}")


def _jax(env: Mapping[str, str]) -> Cluster | None:
    """JAX's own variables, as launch/gke/jobset.yaml sets them; an Indexed Job numbers its pods."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if not any(name in env for name in names):
        return None
    count = _number(env, names[1], "environment")
    index = names[2] if names[2] in env or "JOB_COMPLETION_INDEX" not in env else "JOB_COMPLETION_INDEX"
    if count > 1 and names[0] not in env:
        raise UserError(f"environment: {names[0]} is not set; {_hint('environment')}")
    return Cluster("environment", env.get(names[0], ""), count, _number(env, index, "environment"))


def _indexed_job(env: Mapping[str, str]) -> Cluster | None:
    """An Indexed Job without JAX_NUM_PROCESSES."""
    if "JOB_COMPLETION_INDEX" in env:
        raise UserError(
            "Kubernetes: JOB_COMPLETION_INDEX is set, JAX_NUM_PROCESSES is not; set it and JAX_COORDINATOR_ADDRESS as "
            "launch/gke/jobset.yaml does (JAX_NUM_PROCESSES=1 for a job of one pod)"
        )
    return None


def _open_mpi(env: Mapping[str, str]) -> Cluster | None:
    """A process of mpirun or mpiexec."""
    if "OMPI_COMM_WORLD_SIZE" not in env:
        return None
    size, rank = (_number(env, f"OMPI_COMM_WORLD_{name}", "Open MPI") for name in ("SIZE", "RANK"))
    # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911 or ...;tcp6://[fe80::1,2620::3]:43370: of the node of mpirun.
    # Open MPI 5 does not say it any more.
    uri = re.match(r"(\d+)\.\d+;tcp6?://(\[?)([^,\]]+?)(?:,|\]|:\d+$)", env.get("OMPI_MCA_orte_hnp_uri", ""))
    address = ""
    if uri:
        job, bracket, host = uri.groups()
        address = f"{f'[{host}]' if bracket else host}:{_port(int(job) // 4096)}"
    local = _own_device(env, env.get("OMPI_COMM_WORLD_LOCAL_RANK"), env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
    return Cluster("Open MPI", address, size, rank, local)


def _slurm(env: Mapping[str, str]) -> Cluster | None:
    """A task of srun. The batch script itself and a login node are none."""
    if "SLURM_JOB_ID" not in env:
        return None
    if "SLURM_STEP_NODELIST" not in env:
        if env.get("SLURM_NTASKS", "1") != "1":
            raise UserError(f"SLURM: a job of {env['SLURM_NTASKS']} tasks, and this is none of them; {_hint('SLURM')}")
        return None
    count, process = (_number(env, name, "SLURM") for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"))
    address = f"{first_host(env['SLURM_STEP_NODELIST'])}:{_port(_number(env, 'SLURM_JOB_ID', 'SLURM'))}"
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]  # such as 8(x4),7
    return Cluster("SLURM", address, count, process, _own_device(env, env.get("SLURM_LOCALID"), tasks))


def _tpu(env: Mapping[str, str]) -> Cluster | None:
    """Cloud TPU: GKE sets these by itself, launch/tpu/queued_resource.sh on plain TPU VMs."""
    names = ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID")
    if not any(name in env for name in names):
        return None
    if names[0] not in env:
        raise UserError(f"Cloud TPU: {names[0]} is not set; {_hint('Cloud TPU')}")
    hosts = [host for host in env[names[0]].split(",") if host]
    return Cluster("Cloud TPU", f"{hosts[0]}:{_TPU_PORT}", len(hosts), _number(env, names[1], "Cloud TPU"))


def _own_device(env: Mapping[str, str], rank: str | None, processes: str) -> tuple[int, ...] | None:
    """With several processes on a node each takes the device of its local rank, unless it is shown one only."""
    visible = [device for device in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if processes == "1" or len(visible) == 1 or rank is None:
        return None
    return (int(rank),)


def _port(job: int) -> int:
    return _FIRST_PORT + job % _PORTS


def first_host(nodes: str) -> str:
    """The first name in a SLURM list such as `gpu[003-006,9],login1`."""
    m = re.match(r"([^,\[]+)(?:\[([^\],\-]+)[^\]]*\]([^,]*))?", nodes)
    if not m:
        raise UserError(f"SLURM: SLURM_STEP_NODELIST={nodes!r}; a list of nodes was expected")
    return "".join(part or "" for part in m.groups())


def start(c: Cluster, peer_timeout: int) -> None:
    """Joins the other processes; before anything else asks JAX for its devices.

    From then on the death of any process ends all others at once, and one that hangs does after `peer_timeout` seconds:
    with one line and exit code 42.

    Raises:
      UserError: they cannot be reached.
    """
    rendezvous.meet(c.coordinator, c.processes, c.process, _SLOWEST)
    import jax

    def gone(what: str) -> None:
        line = f"process {c.process} stops: {what}; call again to go on from the newest checkpoint"
        end_now(STOPPED, line, fault=True)

    host, _, port = c.coordinator.rpartition(":")
    relay_port = free_port()
    local = f"127.0.0.1:{relay_port}"
    if c.process == 0:  # the relay is outside, and JAX's service behind it
        listener, target = rendezvous.listen(int(port), c.processes), ("127.0.0.1", relay_port)
    else:
        listener, target = socket.create_server(("127.0.0.1", relay_port)), (host.strip("[]"), int(port))
    relay = peers.Relay(listener, target, c.process, gone, silence=peer_timeout)
    # JAX's own service would take SIGTERM for itself; stop requests are agreed on in parallel/processes.py.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            local, c.processes, c.process, local_device_ids=c.local_devices, initialization_timeout=_SLOWEST,
            coordinator_bind_address=local,
            heartbeat_timeout_seconds=_JAX_WAITS * peer_timeout,
        )  # fmt: skip
    except RuntimeError as e:
        raise UserError(
            f"{c.source}: process {c.process} of {c.processes} cannot join at {c.coordinator}: "
            f"{' '.join(str(e).split())[:200]}"
        ) from e
    relay.watching = True
    atexit.register(relay.leave)  # before JAX's, which waits until all are there and then parts


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def check_alone(c: Cluster | None, processes: int) -> None:
    """A TPU slice of several hosts runs as one program even when nobody has called the others.

    Raises:
      UserError: JAX sees processes that no flag and no scheduler has named.
    """
    if c is None and processes > 1:
        raise UserError(
            f"JAX sees {processes} processes, but nothing says how they find each other; write {', '.join(EXPLICIT)}, "
            "or start them as launch/tpu/queued_resource.sh does"
        )
