"""BibTeX and departures of the methods that ran.

A method is named by the word users give it (`lora`, `prefill`) or by what it computes (`wilson`). An entry exists only
for what is implemented. A method that is an object of its own (a merge method) has its entry there; another adds its
works to `works.jsonl` and an entry to `_METHODS`.
"""

from __future__ import annotations

from collections.abc import Iterable

from alignkeep.judging.metrics import OVER_REFUSAL
from alignkeep.works import Citation


def _method(name: str, title: str, keys: str, *departures: str) -> Citation:
    return Citation(name, title, tuple(keys.split()), departures)


_IN_PLAIN_WORDS = "The wording is our own, and the answer is asked for in plain words."
_METHODS = {
    method.name: method
    for method in (
        _method(
            "lora",
            "Low-rank adaptation",
            "hu2022lora",
            "Every linear layer is adapted unless target_modules says otherwise; the paper adapts attention only.",
        ),
        _method(
            "grao",
            "Online alignment that imitates, explores and transcends",
            "wang2025learning shao2024deepseekmath",
            "The reference is a member of its group; the paper's printed sums leave it out, and a group that loses "
            "every comparison then teaches nothing.",
            "A group of equal rewards has no advantages, and an answer that could not be scored is no member.",
            "Log-probabilities are those of the distribution that was sampled from, at its temperature.",
            "NAG is the mean sign of the change; the printed indicator cannot be negative, as values of its table are.",
        ),
        _method("grpo", "Group relative policy optimisation", "shao2024deepseekmath vonwerra2020trl"),
        _method("sft", "Supervised fine-tuning on answers", "ouyang2022training vonwerra2020trl"),
        _method(
            "merge",
            "Merging the aligned base back into the tuned model",
            "farn2025safeguard wortsman2022model goddard2024arcee",
            "The weight is given, or chosen in a sweep on validation prompts by a rule, with intervals; the paper "
            "tries ten.",
            "Arithmetic is in float32 and rounded once, whatever type the weights are stored in.",
        ),
        _method(
            "rosi",
            "Rank-one safety injection",
            "shairah2025rosi arditi2024refusal",
            "Layer and strength are chosen by the effect of the edit on held-out prompts; the paper gives no strength.",
            "With the calibrated sign every matrix pushes towards the direction; the paper's sign is one option away.",
        ),
        _method(
            "targeted",
            "A right factor that answers to harmful prompts and is silent elsewhere",
            "capon1969high",
            "In place of the paper's mean row: our use of a beamformer's response, published nowhere.",
        ),
        _method(
            "tamper",
            "Refusals after harmful tuning on few examples",
            "qi2024finetuning",
            "Our prompts, and a paired test of every count of examples against the model as it was.",
        ),
        _method(
            "ablation",
            "Directional ablation: the refusal direction out of every matrix that writes to the residual stream",
            "arditi2024refusal",
            "The layer is chosen by the answers under the ablation; the paper looks at their first token, and asks "
            "that adding the direction makes the model refuse.",
            "The embeddings' matrix is left alone: what it gives is projected before the first block.",
        ),
        _method(
            "driftcheck",
            "Safety before and after a tune, on safe and unsafe prompts",
            "das2025alignguard qi2024finetuning",
            "The paper's prompts were not published: the embedded ones are our own, and fewer.",
            "Drift is harm refusal of the base minus that of the tuned model on the same prompts, our definition.",
        ),
        _method(
            OVER_REFUSAL.name,
            "Refusals of borderline prompts that deserve an answer",
            "rottger2024xstest",
            "The prompts are our own; partial refusals are not told apart from full ones.",
        ),
        _method(
            "prefix_injection",
            "Attack: the prompt asks for an affirmative beginning",
            "wei2023jailbroken",
            "One fixed wording of our own.",
        ),
        _method(
            "role_play",
            "Attack: the prompt asks the model to play somebody without rules",
            "shen2024anything shah2023scalable",
            "One fixed persona of our own for every request.",
        ),
        _method(
            "system_override",
            "Attack: a system message that declares the rules void",
            "qi2024finetuning",
            "The paper's obedient-agent message is tuned into the model; ours is only shown to it, in our own words.",
        ),
        _method(
            "prefill",
            "Attack: the answer's first words are put into the model's mouth",
            "qi2025safety andriushchenko2025jailbreaking",
            "One fixed beginning for all prompts instead of the first tokens of a harmful answer to each.",
        ),
        _method(
            "refusal_suppression",
            "Attack: rules that leave no words to refuse with",
            "wei2023jailbroken",
            "One fixed wording of our own.",
        ),
        *(
            _method(name, f"Attack: the request in {title}", "wei2023jailbroken yuan2024cipher", _IN_PLAIN_WORDS)
            for name, title in (("base64", "Base64"), ("rot13", "ROT13"), ("leet", "leetspeak"))
        ),
        _method(
            "payload_splitting",
            "Attack: the request in two parts that the model puts together",
            "kang2023exploiting",
            "Always two parts, cut between words.",
        ),
        _method(
            "many_shot",
            "Attack: a chat in which everything is answered at once",
            "anil2024manyshot",
            "16 harmless questions as turns; the paper shows up to hundreds of harmful ones in one turn.",
        ),
        _method(
            "best_of_n",
            "Attack: the request in many altered wordings",
            "hughes2024bestofn",
            "Ten wordings, each answered greedily; the paper samples up to 10,000 answers.",
        ),
        _method(
            "crescendo",
            "Attack: turns that come nearer to the request",
            "russinovich2024great",
            "A script of four turns; in the paper a model writes them and goes back after a refusal.",
        ),
        _method(
            "lm_eval",
            "Utility by lm-evaluation-harness",
            "gao2024framework",
            "A group is scored over all its items together, each with the same weight.",
        ),
        _method("wilson", "Interval of a rate", "wilson1927probable"),
        _method("holm", "p-values of categories, of attacks and of utility, corrected", "holm1979simple"),
        _method(
            "mcnemar",
            "Paired test of two models on the same prompts",
            "mcnemar1947note newcombe1998improved",
            "The p-value is the exact binomial one, not the chi-squared approximation.",
        ),
        _method(
            "kappa",
            "Agreement of two judges beyond chance",
            "cohen1960coefficient",
            "The interval has Wilson's limits of the observed agreement, the agreement by chance taken as known.",
        ),
        _method(
            "bootstrap",
            "Interval of the attack success averaged over attacks",
            "efron1979bootstrap",
            "Prompts are resampled, not answers: the same prompt stands under every attack.",
        ),
    )
}


Cited = str | Citation  # a name that has an entry here, or what a method that is an object says of itself


def known(names: Iterable[Cited]) -> tuple[Cited, ...]:
    """Those of the names that have an entry: there is none for what is not implemented."""
    return tuple(one for one in names if isinstance(one, Citation) or one in _METHODS)


def cite(names: Iterable[Cited]) -> tuple[Citation, ...]:
    """The citations of these names, each once and in the order of this file, what an object says of itself behind the
    name before it; names without an entry are left out."""
    behind: dict[str, dict[Citation, None]] = {}
    last = ""
    for one in names:
        if isinstance(one, Citation):
            behind.setdefault(last, {})[one] = None
        else:
            last = one
            behind.setdefault(last, {})
    ordered = [*behind.get("", ())]
    for name, entry in _METHODS.items():
        if name in behind:
            ordered += [entry, *behind[name]]
    return tuple(dict.fromkeys(ordered))


def bibtex(methods: Iterable[Citation]) -> str:
    """The works of the methods as one BibTeX file, each work once."""
    works = {work.key: work for method in methods for work in method.works}
    return "".join(work.bibtex() + "\n\n" for work in works.values()).rstrip("\n") + ("\n" if works else "")
