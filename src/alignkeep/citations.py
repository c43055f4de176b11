"""BibTeX and departures of the methods that ran.

A method is named by the word users give it (`lora`, `prefill`) or by what it computes (`wilson`). An entry exists only
for what is implemented; a new method adds its works to `_WORKS` and one `Method` to `_METHODS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """One published work. `kind` is its BibTeX entry type; `authors` are in BibTeX order, joined by ` and `."""

    key: str
    kind: str
    authors: str
    title: str
    venue: str
    year: int
    url: str

    def bibtex(self) -> str:
        """The entry, ending without a newline."""
        where = {"article": "journal", "inproceedings": "booktitle"}.get(self.kind, "howpublished")
        fields = {"author": self.authors, "title": f"{{{self.title}}}", where: self.venue, "year": str(self.year)}
        lines = [f"  {name} = {{{value}}}," for name, value in (*fields.items(), ("url", self.url))]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])

    def plain(self) -> str:
        """Authors (year), for running text: one or two names, or the first and `et al.`."""
        names = [name.partition(",")[0].strip() for name in self.authors.split(" and ")]
        shown = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        return f"{shown} ({self.year})"


@dataclass(frozen=True, slots=True)
class Method:
    """A method in use: what it is for, the works it comes from, and where it departs from them."""

    name: str
    title: str
    works: tuple[Work, ...]
    departures: tuple[str, ...] = ()


_WORKS = {
    work.key: work
    for work in (
        Work(
            "hu2022lora",
            "inproceedings",
            "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean"
            " and Wang, Lu and Chen, Weizhu",
            "LoRA: Low-Rank Adaptation of Large Language Models",
            "International Conference on Learning Representations",
            2022,
            "https://arxiv.org/abs/2106.09685",
        ),
        Work(
            "ouyang2022training",
            "inproceedings",
            "Ouyang, Long and Wu, Jeff and Jiang, Xu and Almeida, Diogo and Wainwright, Carroll L. and Mishkin, Pamela"
            " and others",
            "Training language models to follow instructions with human feedback",
            "Advances in Neural Information Processing Systems",
            2022,
            "https://arxiv.org/abs/2203.02155",
        ),
        Work(
            "vonwerra2020trl",
            "misc",
            "von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and"
            " Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin",
            "TRL: Transformers Reinforcement Learning",
            "GitHub",
            2020,
            "https://github.com/huggingface/trl",
        ),
        Work(
            "qi2024finetuning",
            "inproceedings",
            "Qi, Xiangyu and Zeng, Yi and Xie, Tinghao and Chen, Pin-Yu and Jia, Ruoxi and Mittal, Prateek and"
            " Henderson, Peter",
            "Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To!",
            "International Conference on Learning Representations",
            2024,
            "https://arxiv.org/abs/2310.03693",
        ),
        Work(
            "das2025alignguard",
            "misc",
            "Das, Amitava and Borah, Abhilekh and Jain, Vinija and Chadha, Aman",
            "AlignGuard-LoRA: Alignment-Preserving Fine-Tuning via Fisher-Guided Decomposition and"
            " Riemannian-Geodesic Collision Regularization",
            "arXiv:2508.02079",
            2025,
            "https://arxiv.org/abs/2508.02079",
        ),
        Work(
            "rottger2024xstest",
            "inproceedings",
            "Röttger, Paul and Kirk, Hannah Rose and Vidgen, Bertie and Attanasio, Giuseppe and Bianchi, Federico and"
            " Hovy, Dirk",
            "XSTest: A Test Suite for Identifying Exaggerated Safety Behaviours in Large Language Models",
            "Conference of the North American Chapter of the Association for Computational Linguistics",
            2024,
            "https://arxiv.org/abs/2308.01263",
        ),
        Work(
            "wei2023jailbroken",
            "inproceedings",
            "Wei, Alexander and Haghtalab, Nika and Steinhardt, Jacob",
            "Jailbroken: How Does LLM Safety Training Fail?",
            "Advances in Neural Information Processing Systems",
            2023,
            "https://arxiv.org/abs/2307.02483",
        ),
        Work(
            "shen2024anything",
            "inproceedings",
            "Shen, Xinyue and Chen, Zeyuan and Backes, Michael and Shen, Yun and Zhang, Yang",
            '"Do Anything Now": Characterizing and Evaluating In-The-Wild Jailbreak Prompts on Large Language Models',
            "ACM Conference on Computer and Communications Security",
            2024,
            "https://arxiv.org/abs/2308.03825",
        ),
        Work(
            "shah2023scalable",
            "misc",
            "Shah, Rusheb and Feuillade-Montixi, Quentin and Pour, Soroush and Tagade, Arush and Casper, Stephen and"
            " Rando, Javier",
            "Scalable and Transferable Black-Box Jailbreaks for Language Models via Persona Modulation",
            "arXiv:2311.03348",
            2023,
            "https://arxiv.org/abs/2311.03348",
        ),
        Work(
            "andriushchenko2025jailbreaking",
            "inproceedings",
            "Andriushchenko, Maksym and Croce, Francesco and Flammarion, Nicolas",
            "Jailbreaking Leading Safety-Aligned LLMs with Simple Adaptive Attacks",
            "International Conference on Learning Representations",
            2025,
            "https://arxiv.org/abs/2404.02151",
        ),
        Work(
            "qi2025safety",
            "inproceedings",
            "Qi, Xiangyu and Panda, Ashwinee and Lyu, Kaifeng and Ma, Xiao and Roy, Subhrajit and Beirami, Ahmad and"
            " Mittal, Prateek and Henderson, Peter",
            "Safety Alignment Should Be Made More Than Just a Few Tokens Deep",
            "International Conference on Learning Representations",
            2025,
            "https://arxiv.org/abs/2406.05946",
        ),
        Work(
            "wilson1927probable",
            "article",
            "Wilson, Edwin B.",
            "Probable Inference, the Law of Succession, and Statistical Inference",
            "Journal of the American Statistical Association",
            1927,
            "https://doi.org/10.1080/01621459.1927.10502953",
        ),
        Work(
            "mcnemar1947note",
            "article",
            "McNemar, Quinn",
            "Note on the sampling error of the difference between correlated proportions or percentages",
            "Psychometrika",
            1947,
            "https://doi.org/10.1007/BF02295996",
        ),
        Work(
            "newcombe1998improved",
            "article",
            "Newcombe, Robert G.",
            "Improved confidence intervals for the difference between binomial proportions based on paired data",
            "Statistics in Medicine",
            1998,
            "https://pubmed.ncbi.nlm.nih.gov/9839354/",
        ),
        Work(
            "efron1979bootstrap",
            "article",
            "Efron, Bradley",
            "Bootstrap Methods: Another Look at the Jackknife",
            "The Annals of Statistics",
            1979,
            "https://doi.org/10.1214/aos/1176344552",
        ),
    )
}


def _method(name: str, title: str, works: str, *departures: str) -> Method:
    return Method(name, title, tuple(_WORKS[key] for key in works.split()), departures)


_METHODS = {
    method.name: method
    for method in (
        _method(
            "lora",
            "Low-rank adaptation",
            "hu2022lora",
            "Every linear layer is adapted unless target_modules says otherwise; the paper adapts attention only.",
        ),
        _method("sft", "Supervised fine-tuning on answers", "ouyang2022training vonwerra2020trl"),
        _method(
            "driftcheck",
            "Safety before and after a tune, on safe and unsafe prompts",
            "das2025alignguard qi2024finetuning",
            "The paper's prompts were not published: the embedded ones are our own, and fewer.",
            "Drift is harm refusal of the base minus that of the tuned model on the same prompts, our definition.",
        ),
        _method(
            "over_refusal",
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
        _method("wilson", "Interval of a rate", "wilson1927probable"),
        _method(
            "mcnemar",
            "Paired test of two models on the same prompts",
            "mcnemar1947note newcombe1998improved",
            "The p-value is the exact binomial one, not the chi-squared approximation.",
        ),
        _method(
            "bootstrap",
            "Interval of the attack success averaged over attacks",
            "efron1979bootstrap",
            "Prompts are resampled, not answers: the same prompt stands under every attack.",
        ),
    )
}


def methods_of(stage: str, config: Mapping[str, object], metrics: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of the methods that a stage with this config uses; `metrics` are the names an evaluation measured.

    An unknown stage or method uses none: there is no entry for what is not implemented.
    """
    match stage:
        case "train":
            method = config.get("method", "lora")
            return ("sft", "lora") if method == "lora" else ("sft",)
        case "evaluate":
            measured = tuple(metrics)
            attacks = [name.partition(".")[2] for name in measured if name.startswith("attack_success.")]
            return (
                *(["driftcheck"] if config.get("suite", "driftcheck") == "driftcheck" or config.get("base") else []),
                *(["over_refusal"] if "over_refusal" in measured else []),
                *(name for name in attacks if name in _METHODS),
                "wilson",
                *(["mcnemar"] if config.get("base") else []),
                *(["bootstrap"] if config.get("base") and len(attacks) > 1 else []),
            )
        case _:
            return ()


def cite(names: Iterable[str]) -> tuple[Method, ...]:
    """The methods of these names, each once and in the order of this file; names without an entry are left out."""
    wanted = set(names)
    return tuple(method for name, method in _METHODS.items() if name in wanted)


def bibtex(methods: Iterable[Method]) -> str:
    """The works of the methods as one BibTeX file, each work once."""
    works = {work.key: work for method in methods for work in method.works}
    return "".join(work.bibtex() + "\n\n" for work in works.values()).rstrip("\n") + ("\n" if works else "")
