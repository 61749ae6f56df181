"""What to change after a refusal, as the records' tables of refusals say it."""

QUEUE = "name a queue that exists and takes your jobs: `queue` in the options, `slurm_partition` in a rule's resources"
ACCOUNT = "name an account of yours: `account` in the options, `slurm_account` in a rule's resources"
PROJECT = "name a project of yours: `project` or `account` in the options"
GROUP = "name a group of yours: accounting_group in job_extra_directives"
QOS = "name a QOS that your account may use: `qos` in a rule's resources, or --qos in job_extra_directives"
NODE = (
    "ask for what a node of that queue has: cores, memory, gpus, the constraint, or another queue; "
    "`job_mem` in the options gives memory that is not rounded up"
)
LIMITS = "ask for what that queue allows: walltime, cores, memory, gpus, or another queue"
TIME = "give the pool a walltime within the queue's limit"
OPTION = "correct the options of the pool, of which the batch script is made (--dask-plan shows it)"
