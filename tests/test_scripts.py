"""The shell scripts that start a training, with stand-ins for python, torchrun and Slurm that record their calls."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.flags import build_parser

ROOT = Path(__file__).resolve().parents[1]
TRAIN, DISTRIBUTED = ROOT / "scripts/train_stage2.sh", ROOT / "scripts/train_stage2_distributed.sh"
SLURM = ROOT / "scripts/train_stage2.slurm"
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), SLURM])

# Records its call as a JSON line in $CALLS. Of `python -c` it is the real one, where torch is not asked for.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, signal, subprocess, sys, time
program, args = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
if program == "python" and args[0] == "-c":
    if "device_count" in args[1]:
        sys.exit(print(3))
    os.execv({sys.executable!r}, [{sys.executable!r}, *args])
asked = []
# scancel reaches the processes that srun has started, here as another signal: SIGTERM ends srun and them at once.
signal.signal(signal.SIGUSR1 if program == "srun" else signal.SIGTERM, lambda number, frame: asked.append(number))
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([program, args, os.getpid()]) + "\\n")
    if "PET_SIGNALS_TO_HANDLE" in os.environ:
        file.write(json.dumps(["handles", os.environ["PET_SIGNALS_TO_HANDLE"].split(","), os.getpid()]) + "\\n")
if "tools/generate_gt_cache.py" in args and not os.environ.get("CACHES_FAIL"):
    path = pathlib.Path(args[args.index("--output") + 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a cache")
elif "tools/generate_gt_cache.py" in args:
    sys.exit(2)
elif program == "scontrol" and args[0] == "show":
    print("node7\\nnode8")
elif program == "scancel":
    started = [json.loads(line) for line in open(os.environ["CALLS"])]
    (step,) = [pid for name, _, pid in started if name == "srun"]
    os.kill(step, signal.SIGUSR1)
    sys.exit()
elif program == "srun" and not os.environ.get("WAITS"):
    sys.exit(subprocess.run(args[args.index("bash"):], env=os.environ | {{"SLURM_NODEID": "1"}}).returncode)
elif os.environ.get("WAITS") and program not in ("scontrol", "scancel"):
    while not asked:
        time.sleep(0.01)
    time.sleep(0.2)
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(["saved", [], os.getpid()]) + "\\n")
sys.exit(143 if asked and program == "python" else int(os.environ.get("ENDS_WITH", "1" if asked else "0")))
"""


class Stage:
    """A folder with the stand-ins and a dataset folder whose name has a space."""

    def __init__(self, folder: Path):
        self.dataroot = folder / "nu scenes"
        self.dataroot.mkdir()
        self.calls_path, programs = folder / "calls", folder / "bin"
        programs.mkdir()
        for name in ("python", "ruff", "torchrun", "srun", "scontrol", "scancel"):
            (programs / name).write_text(STAND_IN)
            (programs / name).chmod(0o755)
        # VIRTUAL_ENV: so that no environment is activated, whose python would come first
        self.env = {"PATH": f"{programs}:/usr/bin:/bin", "CALLS": str(self.calls_path), "VIRTUAL_ENV": str(folder),
                    "DATAROOT": str(self.dataroot), "HOME": str(folder)}

    def start(self, script: Path, *flags: str, before: tuple[str, ...] = (), **variables) -> subprocess.Popen:
        env = self.env | {name: str(value) for name, value in variables.items()}
        return subprocess.Popen([*before, "bash", str(script), *flags], env=env, cwd=ROOT, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, script: Path, *flags: str, code: int = 0, **variables: object) -> str:
        """What it says on stderr."""
        process = self.start(script, *flags, **variables)
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode == code, stderr
        return stderr

    def calls(self, program: str) -> list[list[str]]:
        """The arguments of each call."""
        return [args for name, args, _ in self._lines() if name == program]

    def training(self) -> list[str]:
        """The flags of the one training that was started without torchrun."""
        started = [args[1:] for args in self.calls("python") if args[0] == "train_map_detection.py"]
        assert len(started) == 1, started
        return started[0]

    def cache_calls(self) -> list[dict[str, str]]:
        """The flags of each call of generate_gt_cache.py by name."""
        made = [args[1:] for args in self.calls("python") if args[0] == "tools/generate_gt_cache.py"]
        return [dict(zip(args[::2], args[1::2], strict=True)) for args in made]

    def wait_for(self, program: str) -> int:
        """The process id of its first call, as soon as there is one."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            found = [pid for name, _, pid in self._lines() if name == program]
            if found:
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"{program} was not called")

    def make_caches(self) -> None:
        for split in ("train", "val"):
            path = self.dataroot / "gt_cache" / f"v1.0-trainval_{split}_60x30.safetensors"
            path.parent.mkdir(exist_ok=True)
            path.write_text("there")

    def _lines(self) -> list[list]:
        text = self.calls_path.read_text() if self.calls_path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def ready(stage: Stage) -> Stage:
    """A stage whose caches are there, and named, so that nobody has to ask Python for their names."""
    stage.make_caches()
    for split in ("train", "val"):
        path = stage.dataroot / "gt_cache" / f"v1.0-trainval_{split}_60x30.safetensors"
        stage.env[f"GT_CACHE_{split.upper()}"] = str(path)
    return stage


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_understands_it(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_shellcheck_has_no_objection():
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [shutil.which("shellcheck", path=beside_python), "-x", "-S", "warning", *map(str, SCRIPTS)]
    subprocess.run(command, check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("flags", "in_processes"),
    [((), True), (("-k", "matcher"), True), (("-m", "performance"), False), (("-m", "gpu"), False)],
)
def test_tests_run_in_processes_but_for_those_that_take_times_or_the_gpu(flags, in_processes, stage):
    stage.run(ROOT / "scripts/test.sh", *flags)
    install, tests = stage.calls("python")
    assert install[:3] == ["-m", "pip", "install"] and install[-1] == "requirements-test.txt"
    assert stage.calls("ruff") == [["check", "."]]
    processes = ["--numprocesses", str(min(4, len(os.sched_getaffinity(0)))), "--dist", "loadfile"]
    assert tests == ["-m", "pytest", *(processes if in_processes else []), *flags]
    stage.run(ROOT / "scripts/test.sh", *flags)
    assert len(stage.calls("python")) == 3, "installed once"


def test_every_flag_has_its_variable(ready):
    variables, wanted = {}, {}
    for action in build_parser()._actions:
        if action.dest == "help":
            continue
        value = "1" if action.nargs == 0 else "28 42" if action.nargs == 2 else (action.choices or ["7"])
        value = value if isinstance(value, str) else list(value)[-1]
        if action.dest.startswith("gt_cache"):
            value = str(ready.dataroot / "gt_cache" / "v1.0-trainval_val_60x30.safetensors")
        variables[action.dest.upper()] = value
        wanted[action.dest] = (True if action.nargs == 0 else [28, 42] if action.nargs == 2
                               else (action.type or str)(value))
    ready.run(TRAIN, **variables)
    assert vars(build_parser().parse_args(ready.training())) == wanted
    assert not ready.cache_calls()


def test_without_variables_the_flags_keep_their_defaults_and_empty_ones_are_none(ready):
    ready.run(TRAIN, LLM_PATH="", RESUME="", BATCH_SIZE="", SHARD_LLM="0", GT_CACHE_TRAIN="", GT_CACHE_VAL="")
    args = build_parser().parse_args(ready.training())
    assert vars(args) == vars(build_parser().parse_args(["--dataroot", str(ready.dataroot)]))


def test_trailing_flags_come_last_as_they_were_given(ready):
    flags = ["--epochs", "12", "--prompt", "a 'b' \"c\" $HOME *", "--output-dir", "a folder/run", "--llm-path", ""]
    ready.run(TRAIN, *flags, EPOCHS=3, OUTPUT_DIR="other place", PROMPT="-x  y", MIRROR=0.5)
    given = ready.training()
    assert given[-len(flags):] == flags
    assert {"--epochs=3", "--output-dir=other place", "--prompt=-x  y", "--mirror=0.5"} <= set(given[: -len(flags)])


def test_missing_caches_are_made_once_for_what_the_environment_asks(stage):
    settings = {"VERSION": "v1.0-mini", "VAL_SPLIT": "mini_val", "PC_RANGE": "100x50", "GT_STYLE": "streammapnet",
                "NUM_WORKERS": 2}
    stage.run(TRAIN, **settings)
    folder = stage.dataroot / "gt_cache"
    expected = [
        {"--dataroot": str(stage.dataroot), "--version": "v1.0-mini", "--split": split, "--pc-range": "100x50",
         "--gt-style": "streammapnet", "--num-workers": "2",
         "--output": str(folder / f"v1.0-mini_{name}_100x50_streammapnet.safetensors")}
        for split, name in (("train", "mini_train"), ("mini_val", "mini_val"))
    ]
    assert stage.cache_calls() == expected
    stage.calls_path.unlink()
    stage.run(TRAIN, **settings)
    assert not stage.cache_calls() and stage.training()


def test_only_the_missing_cache_is_made_also_under_a_name_of_its_own(ready, tmp_path):
    ready.run(TRAIN, GT_CACHE_TRAIN="", GT_CACHE_VAL=tmp_path / "my val.safetensors")
    assert [call["--output"] for call in ready.cache_calls()] == [str(tmp_path / "my val.safetensors")]
    assert f"--gt-cache-val={tmp_path / 'my val.safetensors'}" in ready.training()


@pytest.mark.parametrize("flag", ["--pc-range=100x50", "--train-split=geographic_train", "--gt-style=streammapnet",
                                  "--gt-cache-train=F", "--dataroot=D", "--version=v1.0-mini", "--help"])
def test_no_cache_is_made_where_a_trailing_flag_decides(flag, stage):
    stage.run(TRAIN, flag)
    assert not stage.cache_calls() and stage.training()[-1] == flag


@pytest.mark.parametrize("script", [TRAIN, DISTRIBUTED], ids=lambda path: path.name)
def test_a_cache_that_cannot_be_made_stops_before_training(script, stage):
    stage.run(script, code=2, CACHES_FAIL=1)
    assert len(stage.cache_calls()) == 1 and not stage.calls("torchrun")
    assert all(args[0] != "train_map_detection.py" for args in stage.calls("python"))


@pytest.mark.parametrize("variables, message", [
    ({"TRAIN_SPLIT": "trian"}, "error: --split: 'trian' is not one of train"),
    ({"SHARD_LLM": "yes"}, "error: SHARD_LLM yes: must be 1 (on) or 0 (off)"),
])
def test_a_mistaken_variable_is_one_line(variables, message, stage):
    stderr = stage.run(TRAIN, code=2, **variables)
    assert stderr.startswith(message) and stderr.count("\n") == 1
    assert not stage.calls("python")


def test_a_signal_to_the_script_is_one_to_the_training(ready):
    process = ready.start(TRAIN, WAITS=1)
    assert ready.wait_for("python") == process.pid
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143 and ready.calls("saved")


def test_one_machine_starts_a_rank_for_each_gpu(ready):
    ready.run(DISTRIBUTED, "--epochs", "12", BATCH_SIZE=1, OUTPUT_DIR="a run")
    (args,) = ready.calls("torchrun")
    at = args.index("train_map_detection.py")
    assert args[:at] == ["--nproc-per-node", "3", "--max-restarts", "0", "--standalone", "--local-addr", "127.0.0.1"]
    assert {"--batch-size=1", "--output-dir=a run"} < set(args[at:]) and args[-2:] == ["--epochs", "12"]


def test_several_machines_meet_at_the_first_which_alone_makes_caches(stage):
    where = {"NNODES": 2, "MASTER_ADDR": "gpu01", "MASTER_PORT": 1234, "NPROC_PER_NODE": 4, "MAX_RESTARTS": 1,
             "OUTPUT_DIR": "run"}
    stage.run(DISTRIBUTED, NODE_RANK=1, **where)
    assert not stage.cache_calls()
    stage.run(DISTRIBUTED, NODE_RANK=0, **where)
    assert len(stage.cache_calls()) == 2
    for rank, args in zip("10", stage.calls("torchrun"), strict=True):
        assert args[: args.index("train_map_detection.py")] == [
            "--nproc-per-node", "4", "--max-restarts", "1", "--nnodes", "2", "--node-rank", rank,
            "--master-addr", "gpu01", "--master-port", "1234", "--rdzv-conf", "timeout=7200"]
        assert "--resume=auto" in args and "--output-dir=run" in args


@pytest.mark.parametrize("variables, flags, message", [
    ({"NNODES": 2}, [], "MASTER_ADDR"),
    ({"MAX_RESTARTS": 1}, [], "OUTPUT_DIR"),
    ({"MAX_RESTARTS": 1, "OUTPUT_DIR": "run", "RESUME": "run/checkpoint_epoch_1.pth"}, [], "take auto"),
    ({"MAX_RESTARTS": 1, "OUTPUT_DIR": "run"}, ["--resume", "run/checkpoint_epoch_1.pth"], "give --resume as"),
])
def test_a_launch_that_cannot_be_meant_is_refused(variables, flags, message, stage):
    stderr = stage.run(DISTRIBUTED, *flags, code=2, **variables)
    assert stderr.startswith("error: ") and message in stderr and stderr.count("\n") == 1
    assert not stage.calls("python") and not stage.calls("torchrun")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_reaches_torchrun_and_shows_in_the_exit_code(number, code, ready):
    process = ready.start(DISTRIBUTED, WAITS=1)
    ready.wait_for("torchrun")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code and ready.calls("saved"), "it waits until the ranks have saved"


def test_a_hang_up_that_nohup_ignores_ends_nothing(ready):
    process = ready.start(DISTRIBUTED, before=("nohup",), WAITS=1)
    ready.wait_for("torchrun")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None and not ready.calls("saved")
    assert ready.calls("handles") == [["SIGTERM", "SIGINT", "SIGQUIT"]], "torchrun handles a hang-up unless told so"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143 and ready.calls("saved")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_program_is_waited_for_until_it_has_ended(number, code, tmp_path):
    program = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print('saved'), " \
              "sys.exit(1))); print('ready', flush=True); time.sleep(30)"
    command = ["bash", "-c", '. scripts/signals.sh; run_passing_signals "$@"', "x", sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=30)[0] == "saved\n" and process.returncode == code


def test_without_a_signal_the_exit_code_is_that_of_torchrun(ready):
    ready.run(DISTRIBUTED, code=7, ENDS_WITH=7)


SLURM_JOB = {"SLURM_JOB_ID": 12345, "SLURM_JOB_NUM_NODES": 2, "SLURM_JOB_NODELIST": "node[7-8]"}


def test_a_slurm_task_joins_the_first_node_and_goes_on_by_itself(ready):
    ready.run(SLURM, "--epochs", "12", NPROC_PER_NODE=4, OUTPUT_DIR="a run", SLURM_CPUS_PER_TASK=8, **SLURM_JOB)
    (args,) = ready.calls("torchrun")
    launch = dict(zip(args[:14:2], args[1:14:2], strict=True))
    assert launch == {"--nproc-per-node": "4", "--max-restarts": "1", "--nnodes": "2", "--node-rank": "1",
                      "--master-addr": "node7", "--master-port": "22345", "--rdzv-conf": "timeout=7200"}
    assert {"--resume=auto", "--output-dir=a run", "--save-every-steps=500"} < set(args)
    assert args[-2:] == ["--epochs", "12"]
    assert "--cpus-per-task=8" in ready.calls("srun")[0]
    assert ready.calls("scontrol") == [["show", "hostnames", "node[7-8]"]], "a finished job is not queued again"


@pytest.mark.parametrize("number, code, queued", [(signal.SIGUSR1, 1, True), (signal.SIGTERM, 143, False)])
def test_a_slurm_job_saves_and_is_queued_again_when_time_runs_out_not_when_cancelled(number, code, queued, ready):
    process = ready.start(SLURM, WAITS=1, **SLURM_JOB)
    ready.wait_for("srun")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code and ready.calls("saved")
    assert ready.calls("scancel") == [["--signal=TERM", "12345"]]
    assert (ready.calls("scontrol")[-1] == ["requeue", "12345"]) == queued


def test_a_slurm_job_that_fails_by_itself_is_not_queued_again(ready):
    ready.run(SLURM, code=1, ENDS_WITH=1, **SLURM_JOB)
    assert len(ready.calls("scontrol")) == 1
