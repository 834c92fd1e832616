"""What costs nothing must stay cheap: help, version, no arguments."""

import resource
import subprocess
import sys

import tutelage
from tests.e2e.command_line import COMMAND, ENVIRONMENT, Terminal, in_a_process

HELP_CPU_SECONDS = 0.5
HEAVY = ("torch", "transformers", "peft", "accelerate", "matplotlib", "numpy")


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    """CPU time, the best of three: other processes on the machine should not fail it."""
    seconds: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = in_a_process("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (done.code, done.err) == (0, "")
        assert "train" in done.out
        if seconds[-1] < HELP_CPU_SECONDS:
            break
    assert min(seconds) < HELP_CPU_SECONDS
    script = (
        "import sys; from tutelage.cli import main; sys.argv = ['tutelage', *sys.argv[1:]]\n"
        "try: main()\n"
        f"finally: print('imported:', [name for name in {HEAVY} if name in sys.modules])"
    )
    for arguments in (["--help"], ["--version"], ["train", "--help"], []):
        out = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
        assert out.stdout.endswith("imported: []\n"), arguments


def test_no_arguments_show_the_help(terminal: Terminal) -> None:
    """Exit code 2, as for every command that lacks something."""
    done = terminal()
    assert done.code == 2
    assert "[OPTIONS] COMMAND [ARGS]" in done.out
    assert "train" in done.out
    assert done.err == ""


def test_version(terminal: Terminal) -> None:
    done = terminal("--version")
    assert (done.code, done.out, done.err) == (0, f"tutelage {tutelage.__version__}\n", "")


def test_a_mistyped_command_or_option(terminal: Terminal) -> None:
    for arguments, hint in ((["traim"], "Did you mean 'train'?"), (["train", "--sett", "a=1"], "--set")):
        done = terminal(*arguments)
        assert (done.code, done.out) == (2, "")
        assert hint in done.err
        assert "Traceback" not in done.err


def test_the_module_and_the_script_are_the_same_command() -> None:
    script = [sys.executable.removesuffix("python") + "tutelage", "--version"]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True).stdout
        for command in (script, [*COMMAND, "--version"])
    ]
    assert outputs[0] == outputs[1]
