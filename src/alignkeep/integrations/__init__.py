"""Our prompts and judges in other people's harnesses; nothing here is imported unless one of them runs.

lm_eval_tasks/      tasks for `lm-eval run --include_path FOLDER`, the folder LM_EVAL_TASKS
inspect_tasks.py    tasks and a scorer that Inspect finds by itself: `inspect eval alignkeep/harm_refusal`
"""

from __future__ import annotations

from pathlib import Path

LM_EVAL_TASKS = Path(__file__).parent / "lm_eval_tasks"
