"""Teachers: who proposes the chains that the student learns from. Scripted, a local model, or a server."""

from fcdpo_utils.teachers.base import Budget, Job, Sample, Teacher, TeacherError
from fcdpo_utils.teachers.scripted import COMMON_MISTAKES, ScriptedTeacher

__all__ = ["COMMON_MISTAKES", "Budget", "Job", "Sample", "ScriptedTeacher", "Teacher", "TeacherError"]
