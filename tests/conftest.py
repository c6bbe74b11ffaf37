"""What the tests share: one thread, no network, repeatable random numbers, and fixtures of several files."""

import logging
import os
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Laws must give the same verdict every time; on a busy machine an example may take long.
settings.register_profile("laws", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("laws")

# Helper modules whose assertions are to say what was compared, as those of test files do.
pytest.register_assert_rewrite(
    "small_alignment", "small_checkpoints", "small_policies", "small_results", "small_training"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; runs only with --slow")
    config.addinivalue_line(
        "markers", "system: starts whole programs, each importing LeRobot; make test-system"
    )
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def decoder() -> Callable[..., torch.nn.Module]:
    """``decoder("llama" | "gemma" | "qwen2", ...)`` builds a small random Hugging Face decoder."""
    from transformers.models.gemma.modeling_gemma import GemmaConfig, GemmaForCausalLM, GemmaModel
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaForCausalLM, LlamaModel
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

    kinds = {
        "llama": (LlamaConfig, LlamaModel, LlamaForCausalLM),
        "gemma": (GemmaConfig, GemmaModel, GemmaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2Model, Qwen2ForCausalLM),
    }

    def build(kind: str, width: int = 32, layers: int = 4, causal_lm: bool = False) -> torch.nn.Module:
        config_class, model_class, causal_class = kinds[kind]
        config = config_class(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=48,
            vocab_size=64,
            pad_token_id=0,
            attn_implementation="sdpa",
        )
        model = (causal_class if causal_lm else model_class)(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # norms start at one (Gemma: zero): a wrong one could go unnoticed
                torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
        return model

    return build


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A small data set, only to be read; test files that need another have their own."""
    from small_dataset import make_dataset

    return make_dataset(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="session")
def cache(dataset, tmp_path_factory) -> Path:
    """Features of ``dataset``, only to be read."""
    from small_plugin import TEACHER

    from spatial_forcing.cache.extract import extract
    from spatial_forcing.teachers import load_teacher

    return extract(dataset, load_teacher(TEACHER), TEACHER, tmp_path_factory.mktemp("cache") / "features")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the small policies of a test file have their parts."""
    return tmp_path_factory.mktemp("policies")


@pytest.fixture
def groot_untouched() -> Iterator[None]:
    """The doctor makes GR00T's preprocessor say what it cropped, in its process: not in the other tests'."""
    groot = sys.modules.get("lerobot.policies.groot.processor_groot")
    steps = [groot.GrootN17PackInputsStep, groot.GrootN17VLMEncodeStep] if groot else []
    plain = [step.__call__ for step in steps]
    yield
    for step, call in zip(steps, plain, strict=True):
        step.__call__ = call


@pytest.fixture
def tracked(folder):
    """GR00T's preprocessor says what it cropped, until the test ends."""
    from small_policies import small_config
    from small_prompted import tracked_crops

    small_config("groot", folder)  # skips where GR00T cannot be built
    with tracked_crops() as groot:
        yield groot


@pytest.fixture
def compiler(monkeypatch) -> Iterator[None]:
    """A fresh torch.compile, before and after, whose trace records stay out of pytest's log."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> Path:
    """A folder of images and videos, as the demo leaves them on disk."""
    from small_results import write_media

    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture
def results(media, tmp_path) -> dict:
    """A finished comparison as the demo leaves it, with its images and videos in ``tmp_path``."""
    from small_results import finished

    shutil.copytree(media, tmp_path, dirs_exist_ok=True)
    return finished()


@pytest.fixture(autouse=True)
def _log_handlers_end_with_their_test():
    """The command line prints our messages to the standard error of its process; a test's is closed soon."""
    logger = logging.getLogger("spatial_forcing")
    before, propagates = list(logger.handlers), logger.propagate
    yield
    logger.handlers[:], logger.propagate = before, propagates
