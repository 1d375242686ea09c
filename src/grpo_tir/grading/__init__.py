"""Decide whether an answer equals a gold answer. This package imports nothing of grpo_tir except `errors`."""

from grpo_tir.grading.extract import extract_answer, model_answer
from grpo_tir.grading.grader import Grade, Grader, default_grader

__all__ = ["Grade", "Grader", "default_grader", "extract_answer", "model_answer"]
