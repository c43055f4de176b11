"""Prints the folder of the tasks for lm-evaluation-harness."""

from alignkeep.integrations import LM_EVAL_TASKS

if __name__ == "__main__":
    print(LM_EVAL_TASKS)  # noqa: T201
