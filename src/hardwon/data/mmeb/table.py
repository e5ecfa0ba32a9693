"""The data sets of MMEB and MMEB-V2, one row each: names, groups, metrics, sizes.

Names are the ones of the published evaluation data. Two of them are easily taken for others: `MSCOCO` is the grounding set
(find the crop of an object), `MSCOCO_t2i` and `MSCOCO_i2t` are retrieval; and MMEB-train says `ImageNet_1K` where the
evaluation data say `ImageNet-1K`.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "vqa", "retrieval", "grounding", "moments", "documents"]
Metric = Literal["hit@1", "ndcg@5"]

EVAL_V1 = "TIGER-Lab/MMEB-eval"  # instruction inside of the text
EVAL_V2 = "TIGER-Lab/MMEB-V2"  # instruction in a column of its own; videos and documents as well
TRAIN = "TIGER-Lab/MMEB-train"


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: in the evaluation data.
        meta_task: the group of tasks that it is counted in.
        distribution: "ind" where its training part belongs to MMEB-train, else "ood".
        query: what a query is made of: T text, I picture, V video.
        candidate: what a candidate is made of.
        candidates: how many a query searches; 0 where that differs from query to query or is all of a corpus.
        queries: how many there are; 0 where nobody has said.
        train: its name in MMEB-train; empty if it has no training part.
        metric: what a result is told in.
        source: repository that its evaluation data are published in.
    """

    name: str
    meta_task: Kind
    distribution: Literal["ind", "ood"]
    query: str
    candidate: str
    candidates: int = 0
    queries: int = 0
    train: str = ""
    metric: Metric = "hit@1"
    source: str = EVAL_V2


def _image(name: str, meta_task: Kind, shape: str, candidates: int = 1000, *, train: str | None = None) -> DataSet:
    """A row of MMEB v1; `shape` is query>candidate, and a name in MMEB-train makes it in-distribution."""
    query, candidate = shape.split(">")
    distribution = "ood" if train is None else "ind"
    return DataSet(name, meta_task, distribution, query, candidate, candidates, 1000, train or "", source=EVAL_V1)


def _trained(name: str, meta_task: Kind, shape: str, candidates: int = 1000) -> DataSet:
    return _image(name, meta_task, shape, candidates, train=name)


IMAGES = (
    _image("ImageNet-1K", "classification", "I>T", 1000, train="ImageNet_1K"),
    _trained("N24News", "classification", "IT>T", 24),
    _trained("HatefulMemes", "classification", "I>T", 2),
    _trained("VOC2007", "classification", "I>T", 20),
    _trained("SUN397", "classification", "I>T", 397),
    _image("Place365", "classification", "I>T", 365),
    _image("ImageNet-A", "classification", "I>T", 1000),
    _image("ImageNet-R", "classification", "I>T", 200),
    _image("ObjectNet", "classification", "I>T", 313),
    _image("Country211", "classification", "I>T", 211),
    *(_trained(name, "vqa", "IT>T") for name in ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W")),
    *(_image(name, "vqa", "IT>T") for name in ("ScienceQA", "VizWiz", "GQA", "TextVQA")),
    _trained("VisDial", "retrieval", "T>I"),
    _trained("CIRR", "retrieval", "IT>I"),
    _trained("VisualNews_t2i", "retrieval", "T>I"),
    _trained("VisualNews_i2t", "retrieval", "I>T"),
    _trained("MSCOCO_t2i", "retrieval", "T>I"),
    _trained("MSCOCO_i2t", "retrieval", "I>T"),
    _trained("NIGHTS", "retrieval", "I>I"),
    _trained("WebQA", "retrieval", "T>IT"),
    _image("FashionIQ", "retrieval", "IT>I"),
    _image("Wiki-SS-NQ", "retrieval", "T>I"),
    _image("OVEN", "retrieval", "IT>IT"),
    _image("EDIS", "retrieval", "T>IT"),
    _trained("MSCOCO", "grounding", "IT>I"),
    _image("RefCOCO", "grounding", "IT>I"),
    _image("RefCOCO-Matching", "grounding", "IT>IT"),
    _image("Visual7W-Pointing", "grounding", "IT>I"),
)

# Nothing of the video tasks is in MMEB-train: all of them count as out of distribution.
VIDEOS = (
    *(DataSet(name, "classification", "ood", "V", "T") for name in ("K700", "SmthSmthV2", "HMDB51", "UCF101", "Breakfast")),
    *(DataSet(name, "vqa", "ood", "VT", "T") for name in ("MVBench", "Video-MME", "NExTQA", "EgoSchema", "ActivityNetQA")),
    *(DataSet(name, "retrieval", "ood", "T", "V") for name in ("DiDeMo", "MSR-VTT", "MSVD", "VATEX", "YouCook2")),
    *(DataSet(name, "moments", "ood", "VT", "V", 10) for name in ("QVHighlight", "Charades-STA", "MomentSeeker")),
)


def _document(name: str, source: str, distribution: Literal["ind", "ood"] = "ind") -> DataSet:
    return DataSet(name, "documents", distribution, "T", "I", metric="ndcg@5", source=source)


# The paper trains on the training parts of ViDoRe and VisRAG and calls the last four out of distribution.
DOCUMENTS = (
    _document("ViDoRe_arxivqa", "vidore/arxivqa_test_subsampled_beir"),
    _document("ViDoRe_docvqa", "vidore/docvqa_test_subsampled_beir"),
    _document("ViDoRe_infovqa", "vidore/infovqa_test_subsampled_beir"),
    _document("ViDoRe_tabfquad", "vidore/tabfquad_test_subsampled_beir"),
    _document("ViDoRe_tatdqa", "vidore/tatdqa_test_beir"),
    _document("ViDoRe_shiftproject", "vidore/shiftproject_test_beir"),
    *(
        _document(f"ViDoRe_syntheticDocQA_{name}", f"vidore/syntheticDocQA_{name}_test_beir")
        for name in ("artificial_intelligence", "energy", "government_reports", "healthcare_industry")
    ),
    _document("ViDoRe_esg_reports_human_labeled_v2", "vidore/esg_reports_human_labeled_v2"),
    *(
        _document(f"ViDoRe_{name}_v2_multilingual", f"vidore/{name}_v2")
        for name in ("biomedical_lectures", "economics_reports", "esg_reports")
    ),
    *(
        _document(f"VisRAG_{name}", f"openbmb/VisRAG-Ret-Test-{name}")
        for name in ("ArxivQA", "ChartQA", "MP-DocVQA", "SlideVQA", "InfoVQA", "PlotQA")
    ),
    _document("ViDoSeek-page", "VLM2Vec/ViDoSeek-page-fixed", "ood"),
    _document("ViDoSeek-doc", "VLM2Vec/ViDoSeek", "ood"),
    _document("MMLongBench-page", "VLM2Vec/MMLongBench-page-fixed", "ood"),
    _document("MMLongBench-doc", "VLM2Vec/MMLongBench-doc", "ood"),
)
