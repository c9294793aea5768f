"""The task `instructions`: its data and its rules; IFEval's rows as a task."""

import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.studies.side_effects import side_effects
from dpo_workbench.tasks.builtin import PLANTED, load_task
from dpo_workbench.tasks.constraints import CHECKS, COUNTS
from dpo_workbench.tasks.instructions import IFEVAL, ifeval
from dpo_workbench.training.run import sft

RESEARCH = Path(__file__).resolve().parents[2] / "research"
TASK = load_task("instructions")
SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def generator():
    sys.path.insert(0, str(RESEARCH))
    try:
        yield importlib.import_module("generators.instructions_tasks")
    finally:
        sys.path.remove(str(RESEARCH))


def test_the_shipped_files_come_from_the_seeds(generator):
    for split, n in generator.SIZES.items():
        rows = {example.id: example for example in TASK.split(split)}
        made_again = generator.make_examples(split, 60, generator.SEEDS[split])
        assert len(rows) == n and all(rows[example.id] == example for example in made_again)
    assert "instructions" not in PLANTED and not any(e.label or e.reference for e in TASK.train)


def test_there_are_enough_prompts_subjects_and_kinds_in_each_split():
    sizes = {split: len(TASK.split(split)) for split in SPLITS}
    assert sizes["train"] >= 1500 and sizes["dev"] >= 150 and sizes["test"] >= 200
    assert len({e.group for split in SPLITS for e in TASK.split(split)}) >= 150
    for split in SPLITS:
        kinds = Counter(c["kind"] for e in TASK.split(split) for c in e.extra["constraints"])
        assert set(kinds) == {*COUNTS, *CHECKS}
        assert {len(e.extra["constraints"]) for e in TASK.split(split)} == {1, 2, 3}


def test_splits_share_no_prompt_subject_or_wording(generator):
    """Subjects are groups, which `Task` checks."""
    lists = generator.lists
    for table in (lists.TEXTS, lists.QUESTIONS, lists.STARTS, lists.ENDS, lists.CHOICES, lists.HEADINGS, lists.MARKS):
        assert sum(len(table[s]) for s in SPLITS) == len({entry for s in SPLITS for entry in table[s]})
    for words in (lists.PLAIN_WORDS, lists.FORBIDDEN):
        assert sum(len(words[s].split(",")) for s in SPLITS) == len({w for s in SPLITS for w in words[s].split(",")})
    wordings = {split: {text for rule in generator.RULES for text in rule.of(split)} for split in SPLITS}
    assert not wordings["train"] & (wordings["dev"] | wordings["test"]) and not wordings["dev"] & wordings["test"]
    assert not {e.prompt for e in TASK.train} & {e.prompt for split in ("dev", "test") for e in TASK.split(split)}


def test_every_prompt_has_an_answer_that_meets_all_constraints_and_is_short():
    """Also the negative control: without the constraints' help, the same writer scores low."""
    plain = []
    for split in SPLITS:
        for example in TASK.split(split):
            answer = written(example.extra)
            score = TASK.score(example, answer)
            assert (score.value, score.failure) == (1.0, None), (example.prompt, answer, score)
            assert len(re.findall(r"\w+|[^\w\s]", answer)) <= 160, (example.prompt, answer)
            plain.append(
                TASK.score(example, written({"about": example.extra.get("about", [""]), "constraints": []})).value
            )
    assert sum(plain) / len(plain) < 0.5


def test_generated_prompts_read_well():
    for split in SPLITS:
        for example in TASK.split(split):
            assert not re.search(r"\b(1|one|One) (words|sentences|lines|times|questions|gaps)|[{}]|  ", example.prompt)


FILL = "stone road near us all it is in red mud on a hot sand and there".split()
FILL_IN = {"es": "la piedra de el camino y los de la tierra con el sol", "fr": "la pierre est dans le chemin et les sur une",
           "de": "der stein ist in dem weg und die erde mit das auf", "it": "il sasso è nella strada e la terra con una che di"}  # fmt: skip


def written(extra: dict) -> str:
    """An answer of filler words that meets the constraints of a row."""
    by_kind = {c["kind"]: c for c in extra["constraints"]}

    def of(kind, name, default=0):
        return by_kind.get(kind, {}).get(name, default)

    quote = '"' if "quoted" in by_kind else ""
    if "one_of" in by_kind:
        return quote + by_kind["one_of"]["answers"][0] + quote
    fill = FILL_IN[of("language", "language")].split() if "language" in by_kind else FILL
    fill = [word for word in fill if word not in of("forbidden", "words", [])]
    needed = [
        *extra.get("about", [])[:1], *of("keywords", "words", []),
        *[of("keyword", "word")] * of("keyword", "at_least"), *[of("letter", "letter", "") * of("letter", "at_least")],
        *["ROCK"] * of("capital_words", "at_least"), *["[rock]"] * of("placeholders", "at_least"),
        *["*rock*"] * of("highlights", "at_least"), "1" * of("digits", "at_least"),
    ]  # fmt: skip
    needed = [word for word in needed if word]
    n_words = of("words", "at_least") or of("words", "around")
    phrases = of("starts_with", "phrase", "") + " " + of("ends_with", "phrase", "")
    n_words -= len(phrases.split()) + 5 * ("postscript" in by_kind)
    n_sentences = of("sentences", "exactly") or of("sentences", "at_least") or min(3, of("sentences", "at_most", 3))
    shapes = ("bullets", "numbered", "lines", "paragraphs", "paragraph_start", "sections", "headings", "versions")
    shape = next((kind for kind in shapes if kind in by_kind and of(kind, "at_most", 1)), "")
    limits = [of(shape, name) for name in ("exactly", "at_least", "paragraphs")]
    n_parts = next(filter(None, limits), min(2, of(shape, "at_most", 2))) if shape else 1
    asked, shouted = of("questions", "at_least"), of("exclamations", "at_least")
    if "sentences" not in by_kind:
        per_sentence = of("longest_sentence", "at_most", 9) - 2
        n_sentences = max(n_sentences, n_parts, asked + shouted, -(-len(needed) // per_sentence), n_words // 6)
    listed = [needed[k::n_sentences] for k in range(n_sentences)]
    for k in range(200):
        shortest = min(listed, key=len)
        if len(shortest) >= 3 and sum(map(len, listed)) >= n_words:
            break
        shortest.insert(0, fill[k % len(fill)])
    ends = ["?"] * asked + ["!"] * shouted + ["."] * n_sentences
    said = [f"{' '.join(words)}{end}" for words, end in zip(listed, ends, strict=False)]
    said = [text[0].upper() + text[1:] for text in said]
    if "starts_with" in by_kind:
        said[0] = f"{by_kind['starts_with']['phrase']} {said[0]}"
    parts = [" ".join(said[k * n_sentences // n_parts : (k + 1) * n_sentences // n_parts]) for k in range(n_parts)]
    return quote + finished(by_kind, shape, parts) + quote


def finished(by_kind: dict, shape: str, parts: list[str]) -> str:
    """The parts in their form, and what comes before and after them."""
    given = by_kind.get(shape, {})
    if shape == "paragraph_start":
        parts[given["paragraph"] - 1] = f"{given['word'].capitalize()} {parts[given['paragraph'] - 1]}"
    before = {
        "bullets": "- ",
        "headings": "# Red\n",
        "numbered": "{n}. ",
        "sections": f"{given.get('heading')} {{n}}\n",
    }
    between = {"versions": f"\n{given.get('mark')}\n", "paragraphs": "\n***\n" if "mark" in given else "\n\n"}
    parts = [before.get(shape, "").format(n=k) + part for k, part in enumerate(parts, 1)]
    text = between.get(shape, "\n\n" if shape == "paragraph_start" else "\n").join(parts)
    if "title" in by_kind:
        text = f"<<Red>>\n{text}"
    if "ends_with" in by_kind:
        text += f"{' ' if shape else chr(10)}{by_kind['ends_with']['phrase']}"
    if "postscript" in by_kind:
        text += f"\n{by_kind['postscript']['marker']} So it is."
    if "json_only" in by_kind:
        text = json.dumps(dict.fromkeys(by_kind["json_only"].get("keys", ["text"]), text))
    if "repeats_request" in by_kind:
        text = f"{by_kind['repeats_request']['request']}\n\n{text}"
    return text.upper() if "upper_case" in by_kind else text.lower() if "lower_case" in by_kind else text


def test_tasks_without_references_say_so_where_one_is_needed(tiny):
    with pytest.raises(WorkbenchError, match="a label or reference for each example. Got none for 3 of 3"):
        sft(tiny, TASK.train[:3], show=False)
    effects = side_effects(tiny, tiny, TASK.with_splits({"dev": TASK.dev[:2]}), others=[], show=False).effects
    assert [e.name for e in effects] == ["log-likelihood of plain text", "KL from the start"]


def ifeval_row(key, *instructions, prompt="Write a text."):
    ids, kwargs = zip(*instructions, strict=True)
    return {"key": key, "prompt": prompt, "instruction_id_list": list(ids), "kwargs": list(kwargs)}


def ifeval_file(folder, *rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


KWARGS = {
    "keywords": ["a", "b"], "keyword": "a", "frequency": 2, "relation": "at least", "forbidden_words": ["c"], "letter": "q",
    "let_relation": "less than", "let_frequency": 3, "language": "de", "num_sentences": 2, "num_paragraphs": 2,
    "num_words": 5, "nth_paragraph": 1, "first_word": "so", "num_placeholders": 1, "postscript_marker": "P.S.",
    "num_bullets": 2, "num_highlights": 1, "section_spliter": "Section", "num_sections": 2, "end_phrase": "Bye.",
    "capital_relation": "less than", "capital_frequency": 2, "prompt_to_repeat": "Say it.",
}  # fmt: skip


def test_all_kinds_of_ifeval_are_read(tmp_path):
    assert len(IFEVAL) == 25
    rows = [ifeval_row(k, (name, KWARGS)) for k, name in enumerate(IFEVAL)]
    task = ifeval(ifeval_file(tmp_path, *rows))
    assert list(task.splits) == ["test"] and [e.id for e in task.test] == [f"ifeval-{k}" for k in range(25)]
    assert {e.extra["constraints"][0]["kind"] for e in task.test} == {kind for kind, _, _ in IFEVAL.values()}
    by_name = dict(zip(IFEVAL, (e.extra["constraints"][0] for e in task.test), strict=True))
    assert by_name["keywords:frequency"] == {"kind": "keyword", "word": "a", "at_least": 2}
    assert by_name["keywords:letter_frequency"] == {"kind": "letter", "letter": "q", "at_most": 2}
    assert by_name["punctuation:no_comma"] == {"kind": "commas", "at_most": 0}
    assert by_name["combination:repeat_prompt"]["request"] == "Say it."


def test_ifeval_is_checked_loosely_and_this_task_strictly(tmp_path):
    rows = (ifeval_row(1, ("change_case:english_lowercase", {}), ("punctuation:no_comma", {"num_words": None})),)
    task = ifeval(ifeval_file(tmp_path, *rows), max_new_tokens=40)
    assert task.max_new_tokens == 40
    assert task.score(task.test[0], "Sure:\nall small").value == 1
    score = task.score(task.test[0], "Not small, no")
    assert (score.value, score.failure) == (0, "lower_case")
    example = next(e for e in TASK.dev if [c["kind"] for c in e.extra["constraints"]] == ["lower_case"])
    about = example.extra["about"][0]
    assert TASK.score(example, f"Sure:\n{about}").failure == "lower_case" and TASK.score(example, about).value == 1


def test_the_request_to_repeat_is_found_in_the_prompt_where_it_is_missing(tmp_path):
    prompt = "Name a drink.\nMake it short.\nFirst repeat the request, then answer."
    task = ifeval(ifeval_file(tmp_path, ifeval_row(1, ("combination:repeat_prompt", {}), prompt=prompt)))
    assert task.test[0].extra["constraints"][0]["request"] == "Name a drink.\nMake it short."
    assert task.score(task.test[0], "Name a drink. Make it short. Tea, then, or a lot of water with ice.").value == 1


def test_bad_rows_of_ifeval_are_all_named(tmp_path):
    rows = (
        ifeval_row(1, ("punctuation:no_comma", {})),
        ifeval_row(2, ("punctuation:no_dots", {})),
        ifeval_row(3, ("keywords:existence", {"keywords": None})),
        {"key": 4, "prompt": "x"},
        ifeval_row(5, ("length_constraints:number_words", {"relation": "less than", "num_words": 0})),
        {**ifeval_row(6, ("punctuation:no_comma", {})), "kwargs": []},
    )
    with pytest.raises(WorkbenchError) as error:
        ifeval(ifeval_file(tmp_path, *rows))
    text = str(error.value)
    assert "5 bad rows of 6" in text and "rows.jsonl:2: unknown instruction 'punctuation:no_dots'" in text
    assert "rows.jsonl:3: no 'keywords'" in text and all(f"rows.jsonl:{k}:" in text for k in (2, 3, 4, 5, 6))


def test_wording_shared_with_a_public_set_is_found(tmp_path, capsys, monkeypatch):
    sys.path.insert(0, str(RESEARCH))
    try:
        overlap = importlib.import_module("prompt_overlap")
    finally:
        sys.path.remove(str(RESEARCH))
    copied = "Please note: " + re.sub(r"\s+", " ", TASK.dev[0].prompt) + " Thank you."
    ifeval_file(tmp_path, {"prompt": copied}, {"prompt": "Something else that nobody here has ever asked for, I hope."})
    monkeypatch.setattr(sys, "argv", ["prompt_overlap", "instructions", str(tmp_path / "rows.jsonl")])
    overlap.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("train") and " 0 of them" in line for line in lines)
    assert any(line.startswith("dev") and " 0 of them" not in line for line in lines)
