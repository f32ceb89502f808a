"""Diagnosis of draws, and the evidence of models."""

from .checks import Check, Diagnosis
from .diagnosis import diagnose
from .evidence import evidence_estimates, log_evidence
from .options import DiagnosisOptions, EvidenceOptions

__all__ = [
    "Check",
    "Diagnosis",
    "DiagnosisOptions",
    "EvidenceOptions",
    "diagnose",
    "evidence_estimates",
    "log_evidence",
]
