"""The cost of guidance: guided against free decoding, and the host's work per step, with Qwen's 151,936 tokens.

    python tests/bench/grammar.py [--quick]

The engine runs a tiny model of random weights, so its steps are short and the share of guidance looks large. Guided
rows end when their answer is complete, and forced tokens need no step. The second table shows the host's work for one
step (compute masks, accept tokens, keep a completion ready) as a share of a 20 ms step of a real model. Its answers are
longer versions of the examples of all shipped schemas.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline import registry
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.model import family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.sampler import apply_grammar_masks
from pipeline.model.families.base import Family
from pipeline.model.guidance.grammar import AnswerMatcher, GrammarCompiler
from pipeline.schema import schema_loader
from pipeline.types import Reply, Request, Sampling, Turn
from tests import qwen_vocabulary
from tests.bench import harness

STEP_MS = 20.0
BUDGET = 512  # of a guided row; free decoding makes FREE
FREE = 32
SCHEMAS = [found for name in registry.SCHEMAS if (found := schema_loader.load_schema(name, base_folder=Path()))]


def build_requests(family: Family, count: int) -> list[Request]:
    """Greedy requests without a schema."""
    turns = (Turn("user", ("What is there to see?",)),)
    prompt = family.encode_turns(turns)
    return [
        Request(str(index), turns, prompt.input_ids, prompt.positions, sampling=Sampling(FREE))
        for index in range(count)
    ]


def measure_rate(engine: TorchEngine, requests: Sequence[Request]) -> float:
    """Output tokens per second."""
    start = time.perf_counter()
    replies = [reply for reply in generate_replies(engine, iter(requests)) if isinstance(reply, Reply)]
    assert len(replies) == len(requests)
    return sum(reply.output_tokens for reply in replies) / (time.perf_counter() - start)


def measure_decoding(folder: Path, slots: int, rounds: int) -> tuple[float, float]:
    """The median tokens per second, free and guided."""
    family = family_loader.load_family(folder)
    engine = TorchEngine(folder, family, slots=slots)
    free = build_requests(family, 2 * slots)
    guided = [replace(request, schema=SCHEMAS[index % len(SCHEMAS)].text) for index, request in enumerate(free)]
    measure_rate(engine, guided)
    rates: dict[str, list[float]] = {"free": [], "guided": []}
    sides = {
        "free": lambda: rates["free"].append(measure_rate(engine, free)),
        "guided": lambda: rates["guided"].append(measure_rate(engine, guided)),
    }
    harness.measure_in_turns(sides, rounds=rounds)
    engine.close()
    return float(np.median(rates["free"])), float(np.median(rates["guided"]))


def lengthen(value: Any) -> Any:
    """The example with longer lists of objects, as real answers have."""
    if isinstance(value, list):
        return [lengthen(part) for part in value] * (6 if isinstance(value[0], dict) else 1)
    return {key: lengthen(part) for key, part in value.items()} if isinstance(value, dict) else value


def build_answer(tokenizer: Tokenizer, index: int) -> tuple[str, list[int]]:
    """A schema, and its example made longer, in the place of a good model's answer."""
    chosen = SCHEMAS[index % len(SCHEMAS)]
    answer = json.dumps(lengthen(chosen.example), separators=(",", ":"), ensure_ascii=False)
    return chosen.text, tokenizer.encode(answer, add_special_tokens=False).ids


def measure_host_work(grammars: GrammarCompiler, rows: int) -> dict[str, float]:
    """The milliseconds of one step of `rows` rows, and the tokens that one sampled token brings."""
    answers = [build_answer(qwen_vocabulary.tokenizer(), index) for index in range(max(rows, 48) // rows * rows)]
    logits = torch.zeros(rows, qwen_vocabulary.MODEL_VOCABULARY)
    masks = np.zeros((rows, logits.shape[1] // 32), np.int32)
    seconds_by_step = {"masks": 0.0, "following": 0.0, "applying": 0.0}
    steps = sampled = total = 0
    for first in range(0, len(answers), rows):
        group = answers[first : first + rows]
        matchers: list[tuple[AnswerMatcher, list[int]]] = [
            (grammars.create_matcher(text, budget=BUDGET), list(tokens)) for text, tokens in group
        ]
        while matchers := [(matcher, rest) for matcher, rest in matchers if rest and not matcher.is_done]:
            start = time.perf_counter()
            for line, (matcher, _) in enumerate(matchers):
                matcher.fill_mask(masks[line])
            filled = time.perf_counter()
            apply_grammar_masks(logits[: len(matchers)], [matcher for matcher, _ in matchers])
            applied = time.perf_counter()
            for matcher, rest in matchers:
                total += follow_answer(matcher, rest)
            share = rows / len(matchers)  # as if no slot were empty
            seconds_by_step["masks"] += (filled - start) * share
            seconds_by_step["applying"] += max(0.0, (applied - filled) - (filled - start)) * share
            seconds_by_step["following"] += (time.perf_counter() - applied) * share
            steps, sampled = steps + 1, sampled + len(matchers)
    return {key: 1000 * seconds / steps for key, seconds in seconds_by_step.items()} | {"tokens": total / sampled}


def follow_answer(matcher: AnswerMatcher, tokens_left: list[int]) -> int:
    """Accept the next token of a known answer and all forced tokens after it; return their number."""
    count = 0
    while tokens_left and not matcher.is_done and (count == 0 or matcher.get_forced_tokens()):
        if matcher.accept_token(tokens_left[0]):
            tokens_left.pop(0)
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and rows")
    quick = parser.parse_args().quick
    torch.set_num_threads(2)
    tokenizer = qwen_vocabulary.tokenizer()
    stop = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    grammars = GrammarCompiler(tokenizer, vocab_size=qwen_vocabulary.MODEL_VOCABULARY, stop_tokens=stop)
    folder = Path(tempfile.mkdtemp())
    write_random_checkpoint(
        folder, "qwen2_5_vl", vocabulary=tokenizer, text_config={"vocab_size": qwen_vocabulary.MODEL_VOCABULARY}
    )
    figures, ratios, rate_lines, cost_lines = {}, {}, [], []
    for rows in (1, 16) if quick else (1, 16, 64):
        free, guided = measure_decoding(folder, rows, rounds=1 if quick else 5)
        rounds = [measure_host_work(grammars, rows) for _ in range(1 if quick else 5)]
        cost = {key: float(np.median([measured[key] for measured in rounds])) for key in rounds[0]}
        ratios[f"guided_over_free_{rows}"] = guided / free
        figures |= {f"free_tokens_s_{rows}": free, f"guided_tokens_s_{rows}": guided}
        figures |= {f"{key}_ms_{rows}": cost[key] for key in ("masks", "following", "applying")}
        figures |= {f"tokens_per_choice_{rows}": cost["tokens"]}
        figures[f"share_of_step_{rows}"] = (cost["masks"] + cost["following"]) / STEP_MS
        rate_lines.append([rows, free, guided, guided / free])
        cost_lines.append(
            [
                rows,
                cost["masks"],
                cost["following"],
                cost["applying"],
                100 * figures[f"share_of_step_{rows}"],
                cost["tokens"],
            ]
        )
    print(harness.format_table(["rows", "free, tokens/s", "guided, tokens/s", "ratio"], rate_lines))
    print()
    header = [
        "rows",
        "masks, ms",
        "following, ms",
        "applying on this CPU, ms",
        "masks and following, % of 20 ms",
        "tokens per choice",
    ]
    print(harness.format_table(header, cost_lines))
    where = harness.describe_machine("torch", "llguidance")
    print(where)
    harness.print_report("grammar", ratios=ratios, figures=figures, where=where)


if __name__ == "__main__":
    main()
