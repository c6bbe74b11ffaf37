"""All cases."""

from malformed import api_cases, cache_cases, compare_cases, run_cases, teacher_cases, train_cases

CASES = [
    *cache_cases.CASES,
    *train_cases.CASES,
    *run_cases.CASES,
    *compare_cases.CASES,
    *teacher_cases.CASES,
    *api_cases.CASES,
]
