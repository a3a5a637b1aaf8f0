"""The cost of guidance: guided against free decoding, and the host's work per step, with Qwen's 151,936 tokens.

    python tests/bench/grammar.py [--quick]

The engine runs a tiny model of random weights, so its steps are short and the share of guidance looks large. Both sides
generate what the model says; guided rows end when their answer ends, and forced tokens need no step of their own. The
second table is the host's work for one step (masks, following the tokens, keeping an ending ready) on longer versions of
the examples of all shipped schemas, as a share of a 20 ms step of a real model.
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


def requests(family: Family, count: int) -> list[Request]:
    """Greedy requests without a schema."""
    turns = (Turn("user", ("What is there to see?",)),)
    prompt = family.encode_turns(turns)
    return [
        Request(str(index), turns, prompt.input_ids, prompt.positions, sampling=Sampling(FREE))
        for index in range(count)
    ]


def speed(engine: TorchEngine, asked: Sequence[Request]) -> float:
    """Output tokens per second."""
    start = time.perf_counter()
    replies = [reply for reply in generate_replies(engine, iter(asked)) if isinstance(reply, Reply)]
    assert len(replies) == len(asked)
    return sum(reply.output_tokens for reply in replies) / (time.perf_counter() - start)


def decoding(folder: Path, slots: int, rounds: int) -> tuple[float, float]:
    """The median tokens per second, free and guided."""
    family = family_loader.load_family(folder)
    engine = TorchEngine(folder, family, slots=slots)
    free = requests(family, 2 * slots)
    guided = [replace(request, schema=SCHEMAS[index % len(SCHEMAS)].text) for index, request in enumerate(free)]
    speed(engine, guided)
    taken: dict[str, list[float]] = {"free": [], "guided": []}
    sides = {
        "free": lambda: taken["free"].append(speed(engine, free)),
        "guided": lambda: taken["guided"].append(speed(engine, guided)),
    }
    harness.in_turns(sides, rounds=rounds)
    engine.close()
    return float(np.median(taken["free"])), float(np.median(taken["guided"]))


def longer(value: Any) -> Any:
    """The example with longer lists of objects, as real answers have."""
    if isinstance(value, list):
        return [longer(part) for part in value] * (6 if isinstance(value[0], dict) else 1)
    return {key: longer(part) for key, part in value.items()} if isinstance(value, dict) else value


def written(tokenizer: Tokenizer, index: int) -> tuple[str, list[int]]:
    """A schema, and its example made longer, in the place of a good model's answer."""
    chosen = SCHEMAS[index % len(SCHEMAS)]
    answer = json.dumps(longer(chosen.example), separators=(",", ":"), ensure_ascii=False)
    return chosen.text, tokenizer.encode(answer, add_special_tokens=False).ids


def host(grammars: GrammarCompiler, rows: int) -> dict[str, float]:
    """The milliseconds of one step of `rows` rows, and the tokens that one sampled token brings."""
    answers = [written(qwen_vocabulary.tokenizer(), index) for index in range(max(rows, 48) // rows * rows)]
    logits = torch.zeros(rows, qwen_vocabulary.MODEL_VOCABULARY)
    words = np.zeros((rows, logits.shape[1] // 32), np.int32)
    spent = {"masks": 0.0, "following": 0.0, "applying": 0.0}
    steps = sampled = total = 0
    for first in range(0, len(answers), rows):
        group = answers[first : first + rows]
        live: list[tuple[AnswerMatcher, list[int]]] = [
            (grammars.create_matcher(text, budget=BUDGET), list(tokens)) for text, tokens in group
        ]
        while live := [(matcher, rest) for matcher, rest in live if rest and not matcher.is_done]:
            start = time.perf_counter()
            for line, (matcher, _) in enumerate(live):
                matcher.fill_mask(words[line])
            filled = time.perf_counter()
            apply_grammar_masks(logits[: len(live)], [matcher for matcher, _ in live])
            applied = time.perf_counter()
            for matcher, rest in live:
                total += follow(matcher, rest)
            share = rows / len(live)  # as if no slot were empty
            spent["masks"] += (filled - start) * share
            spent["applying"] += max(0.0, (applied - filled) - (filled - start)) * share
            spent["following"] += (time.perf_counter() - applied) * share
            steps, sampled = steps + 1, sampled + len(live)
    return {key: 1000 * seconds / steps for key, seconds in spent.items()} | {"tokens": total / sampled}


def follow(matcher: AnswerMatcher, rest: list[int]) -> int:
    """Accept the next token of a known answer and all forced tokens after it; return their number."""
    count = 0
    while rest and not matcher.is_done and (count == 0 or matcher.get_forced_tokens()):
        if matcher.accept_token(rest[0]):
            rest.pop(0)
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
    figures, ratios, speeds, costs = {}, {}, [], []
    for rows in (1, 16) if quick else (1, 16, 64):
        free, guided = decoding(folder, rows, rounds=1 if quick else 5)
        rounds = [host(grammars, rows) for _ in range(1 if quick else 5)]
        cost = {key: float(np.median([found[key] for found in rounds])) for key in rounds[0]}
        ratios[f"guided_over_free_{rows}"] = guided / free
        figures |= {f"free_tokens_s_{rows}": free, f"guided_tokens_s_{rows}": guided}
        figures |= {f"{key}_ms_{rows}": cost[key] for key in ("masks", "following", "applying")}
        figures |= {f"tokens_per_choice_{rows}": cost["tokens"]}
        figures[f"share_of_step_{rows}"] = (cost["masks"] + cost["following"]) / STEP_MS
        speeds.append([rows, free, guided, guided / free])
        costs.append(
            [
                rows,
                cost["masks"],
                cost["following"],
                cost["applying"],
                100 * figures[f"share_of_step_{rows}"],
                cost["tokens"],
            ]
        )
    print(harness.table(["rows", "free, tokens/s", "guided, tokens/s", "ratio"], speeds))
    print()
    header = [
        "rows",
        "masks, ms",
        "following, ms",
        "applying on this CPU, ms",
        "masks and following, % of 20 ms",
        "tokens per choice",
    ]
    print(harness.table(header, costs))
    where = harness.machine("torch", "llguidance")
    print(where)
    harness.report("grammar", ratios=ratios, figures=figures, where=where)


if __name__ == "__main__":
    main()
