"""Check that the problems can be read, and that no held-out or benchmark problem is trained on."""

from collections.abc import Iterator
from functools import partial

from grpo_tir.config import Config
from grpo_tir.diagnostics.finding import Finding, fault, fine, warning
from grpo_tir.errors import DataError
from grpo_tir.types import Problem


def check_problems(config: Config, into: list[Problem], bench_dir: str | None = None) -> Iterator[Finding]:
    """Read and compare training and held-out problems; training problems are added to `into`. `bench_dir` is the
    folder of the benchmark files; None: the Hub."""
    from grpo_tir.data.load import read_all_problems

    lines: list[str] = []
    train, held_out = read_all_problems(config, lines.append)
    into += train
    yield fine("problems", "; ".join([f"{len(train)} to train on, {len(held_out)} held out", *lines]))
    if len(train) < config.rollout.prompts_per_step:
        yield fault(
            "problems",
            f"{len(train)} problems are fewer than rollout.prompts_per_step {config.rollout.prompts_per_step}: "
            "some would be drawn twice in a step",
        )
    texts = {plain(problem.problem) for problem in train}
    shared = [problem for problem in held_out if plain(problem.problem) in texts]
    if shared:
        yield fault(
            "problems",
            f"{len(shared)} of {len(held_out)} problems of data.eval are trained on, the first: {shared[0].id}. "
            "Remove them from data.train; otherwise the accuracy measures memorisation",
        )
    yield check_overlap(train, bench_dir)


def check_overlap(train: list[Problem], bench_dir: str | None) -> Finding:
    """Look for problems of the paper's benchmarks in the training data."""
    from grpo_tir.curation.contamination import Benchmarks, answers_differ
    from grpo_tir.curation.fingerprint import fingerprint
    from grpo_tir.data.benchmarks import PINS, load_benchmark
    from grpo_tir.grading.grader import default_grader

    try:
        loaded = [load_benchmark(name, bench_dir, log=lambda line: None) for name in PINS]
    except DataError as error:
        return warning("problems", f"not compared with the benchmarks: {error}")
    known = Benchmarks((one.name, p.id, p.problem, p.answer) for one in loaded for p in one.problems)
    similar = []
    for problem in train:
        differs = partial(answers_differ, default_grader(), problem.answer)
        if found := known.find(fingerprint(problem.problem), differs):
            similar.append((problem, found))
    number = sum(len(one.problems) for one in loaded)
    if not similar:
        return fine("problems", f"none of them is similar to the {number} of {', '.join(PINS)}")
    (problem, found), names = similar[0], sorted({found.benchmark for _, found in similar})
    return fault(
        "problems",
        f"{len(similar)} of {len(train)} are similar to a problem of {', '.join(names)}; the first, {problem.id}, "
        f"to {found.benchmark} {found.id}. Keep them out: grpo-tir data build --bench {','.join(names)}",
    )


def plain(text: str) -> str:
    """Return the letters and digits only, in lower case, so that typesetting does not hide a copy."""
    return "".join(character for character in text.lower() if character.isalnum())
