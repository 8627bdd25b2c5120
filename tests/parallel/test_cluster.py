"""Who is in the cluster: every scheduler's environment, and every way to get it wrong."""

import pytest

from curia2_jax.errors import UserError
from curia2_jax.parallel.cluster import Cluster, cluster, first_host

SLURM = {
    "SLURM_JOB_ID": "5000", "SLURM_STEP_NODELIST": "gpu[003-006],x9", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_NTASKS": "4",
}  # fmt: skip
MPI = {
    "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.96.0.1,10.148.0.1:34911",
}  # fmt: skip
TPU = {"TPU_WORKER_HOSTNAMES": "t-0.sub,t-1.sub", "TPU_WORKER_ID": "1"}
JOBSET = {"JAX_COORDINATOR_ADDRESS": "run-workers-0-0.run:1234", "JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"HOME": "/root", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        # One process for a node, then one for a device, then one that is shown its own device only.
        (SLURM, Cluster("SLURM", "gpu003:62344", 4, 2)),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_LOCALID": "6", "SLURM_STEP_NUM_TASKS": "32"},
         Cluster("SLURM", "gpu003:62344", 32, 2, (6,))),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_LOCALID": "6", "CUDA_VISIBLE_DEVICES": "6"},
         Cluster("SLURM", "gpu003:62344", 4, 2)),
        # The batch script of a job with one task, and a step of one task.
        ({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "1"}, None),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        (MPI, Cluster("Open MPI", "10.96.0.1:61442", 8, 5, (1,))),
        ({**MPI, "OMPI_MCA_orte_hnp_uri": "4096.0;tcp6://[fe80::1,2620::3]:43370"},
         Cluster("Open MPI", "[fe80::1]:61441", 8, 5, (1,))),
        ({**MPI, "OMPI_MCA_orte_hnp_uri": "4096.0;tcp6://[fe80::1]:43370"},
         Cluster("Open MPI", "[fe80::1]:61441", 8, 5, (1,))),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, Cluster("Open MPI", "10.96.0.1:61442", 8, 5)),
        # mpirun inside a SLURM job: the inner launcher counts.
        ({**MPI, "SLURM_JOB_ID": "5", "SLURM_NTASKS": "8"}, Cluster("Open MPI", "10.96.0.1:61442", 8, 5, (1,))),
        (TPU, Cluster("Cloud TPU", "t-0.sub:8476", 2, 1)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        (JOBSET, Cluster("environment", "run-workers-0-0.run:1234", 2, 1)),
        ({**JOBSET, "JAX_PROCESS_ID": "0"}, Cluster("environment", "run-workers-0-0.run:1234", 2, 0)),
        ({"JAX_NUM_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"}, None),
    ],
)  # fmt: skip
def test_environments(env, expected):
    assert cluster(env) == expected


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4"}, ("4 tasks", "srun")),
        ({k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}, ("SLURM_PROCID", "srun")),
        ({**SLURM, "SLURM_PROCID": "x"}, ("SLURM_PROCID='x'",)),
        ({**SLURM, "SLURM_PROCID": "4"}, ("process 4 of 4", "0 to 3")),
        ({k: v for k, v in MPI.items() if k != "OMPI_MCA_orte_hnp_uri"}, ("Open MPI", "--coordinator")),
        ({k: v for k, v in MPI.items() if k != "OMPI_COMM_WORLD_RANK"}, ("OMPI_COMM_WORLD_RANK",)),
        ({"TPU_WORKER_ID": "0"}, ("TPU_WORKER_HOSTNAMES",)),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, ("TPU_WORKER_ID",)),
        ({**TPU, "TPU_WORKER_ID": "2"}, ("process 2 of 2",)),
        ({"JOB_COMPLETION_INDEX": "0"}, ("JAX_NUM_PROCESSES",)),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, ("JAX_NUM_PROCESSES",)),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, ("JAX_COORDINATOR_ADDRESS",)),
        ({**JOBSET, "JAX_COORDINATOR_ADDRESS": "nohost"}, ("'nohost'", "HOST:PORT")),
    ],
)
def test_a_partial_environment_is_an_error_of_one_line(env, words):
    with pytest.raises(UserError) as e:
        cluster(env)
    assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)


def test_flags_win_and_come_together():
    assert cluster(SLURM, "h:1", 2, 0) == Cluster("flags", "h:1", 2, 0)
    assert cluster(MPI, coordinator="h:1") == Cluster("Open MPI", "h:1", 8, 5, (1,))
    for flags in ({"processes": 2}, {"coordinator": "h:1", "processes": 2}, {"process": 0}, {"coordinator": "h:1"}):
        with pytest.raises(UserError, match="missing"):
            cluster({}, **flags)
    with pytest.raises(UserError, match="process 2 of 2"):
        cluster({}, "h:1", 2, 2)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[01-16]", "n01"),
        ("n[001,7-9],m", "n001"),
        ("a[3]-ib,b", "a3-ib"),
        ("a-b[2-3]", "a-b2"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first
