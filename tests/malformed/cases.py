"""All malformed inputs."""

from malformed import (
    api_cache_cases,
    api_forcing_cases,
    api_measure_cases,
    api_teacher_cases,
    cache_cases,
    compare_cases,
    geometry_cases,
    libero_cases,
    run_cases,
    teacher_cases,
    train_cases,
)

OF_COMMANDS = (
    cache_cases,
    train_cases,
    run_cases,
    compare_cases,
    teacher_cases,
    geometry_cases,
    libero_cases,
)
OF_THE_API = (api_teacher_cases, api_forcing_cases, api_cache_cases, api_measure_cases)
CASES = [case for module in (*OF_COMMANDS, *OF_THE_API) for case in module.CASES]
