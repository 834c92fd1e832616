"""A weighted_sft job: fine-tuning, of which weights of rows and turns are a part."""

from tutelage.worker.programs.fine_tuning import fine_tune
from tutelage.worker.programs.program import run_program

if __name__ == "__main__":
    run_program(fine_tune)
