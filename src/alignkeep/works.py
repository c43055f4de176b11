"""The published works that `citations.py` refers to: bibliography, no code."""

from __future__ import annotations

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


WORKS = {
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
        Work(
            "farn2025safeguard",
            "inproceedings",
            "Farn, Hua and Su, Hsuan and Kumar, Shachi H. and Sahay, Saurav and Chen, Shang-Tse and Lee, Hung-yi",
            "Safeguard Fine-Tuned LLMs Through Pre- and Post-Tuning Model Merging",
            "Findings of the Association for Computational Linguistics: EMNLP",
            2025,
            "https://arxiv.org/abs/2412.19512",
        ),
        Work(
            "wortsman2022model",
            "inproceedings",
            "Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Yitzhak and others",
            "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing"
            " inference time",
            "International Conference on Machine Learning",
            2022,
            "https://arxiv.org/abs/2203.05482",
        ),
        Work(
            "shoemake1985animating",
            "inproceedings",
            "Shoemake, Ken",
            "Animating rotation with quaternion curves",
            "SIGGRAPH",
            1985,
            "https://doi.org/10.1145/325334.325242",
        ),
        Work(
            "ilharco2023editing",
            "inproceedings",
            "Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Gururangan, Suchin and"
            " Schmidt, Ludwig and Hajishirzi, Hannaneh and Farhadi, Ali",
            "Editing Models with Task Arithmetic",
            "International Conference on Learning Representations",
            2023,
            "https://arxiv.org/abs/2212.04089",
        ),
        Work(
            "yadav2023ties",
            "inproceedings",
            "Yadav, Prateek and Tam, Derek and Choshen, Leshem and Raffel, Colin and Bansal, Mohit",
            "TIES-Merging: Resolving Interference When Merging Models",
            "Advances in Neural Information Processing Systems",
            2023,
            "https://arxiv.org/abs/2306.01708",
        ),
        Work(
            "yu2024language",
            "inproceedings",
            "Yu, Le and Yu, Bowen and Yu, Haiyang and Huang, Fei and Li, Yongbin",
            "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
            "International Conference on Machine Learning",
            2024,
            "https://arxiv.org/abs/2311.03099",
        ),
        Work(
            "deep2024della",
            "misc",
            "Deep, Pala Tej and Bhardwaj, Rishabh and Poria, Soujanya",
            "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling",
            "arXiv:2406.11617",
            2024,
            "https://arxiv.org/abs/2406.11617",
        ),
        Work(
            "davari2024model",
            "inproceedings",
            "Davari, MohammadReza and Belilovsky, Eugene",
            "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
            "European Conference on Computer Vision",
            2024,
            "https://arxiv.org/abs/2312.06795",
        ),
        Work(
            "jang2024model",
            "inproceedings",
            "Jang, Dong-Hwan and Yun, Sangdoo and Han, Dongyoon",
            "Model Stock: All we need is just a few fine-tuned models",
            "European Conference on Computer Vision",
            2024,
            "https://arxiv.org/abs/2403.19522",
        ),
        Work(
            "goddard2024arcee",
            "inproceedings",
            "Goddard, Charles and Siriwardhana, Shamane and Ehghaghi, Malikeh and others",
            "Arcee's MergeKit: A Toolkit for Merging Large Language Models",
            "Conference on Empirical Methods in Natural Language Processing: Industry Track",
            2024,
            "https://arxiv.org/abs/2403.13257",
        ),
        Work(
            "matena2022merging",
            "inproceedings",
            "Matena, Michael S. and Raffel, Colin A.",
            "Merging Models with Fisher-Weighted Averaging",
            "Advances in Neural Information Processing Systems",
            2022,
            "https://arxiv.org/abs/2111.09832",
        ),
        Work(
            "jin2023dataless",
            "inproceedings",
            "Jin, Xisen and Ren, Xiang and Preotiuc-Pietro, Daniel and Cheng, Pengxiang",
            "Dataless Knowledge Fusion by Merging Weights of Language Models",
            "International Conference on Learning Representations",
            2023,
            "https://arxiv.org/abs/2212.09849",
        ),
        Work(
            "martens2015optimizing",
            "inproceedings",
            "Martens, James and Grosse, Roger",
            "Optimizing Neural Networks with Kronecker-factored Approximate Curvature",
            "International Conference on Machine Learning",
            2015,
            "https://arxiv.org/abs/1503.05671",
        ),
    )
}
