"""Chat models as rerankers: a score is the log-odds of Yes to one whole prompt, here and in sentence-transformers."""

import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vlms
from PIL import Image

from hardwon.errors import BadItems, JudgeError, ModelError
from hardwon.items import Item
from hardwon.models import Judge, Listing, LoRA, Question, Reranker, Scorer, load_reranker
from hardwon.models import judge as module
from hardwon.models.question import WORDING
from hardwon.models.template import Asked, asked, original, wrapped

ASKED = Question("Does it fit? {yes} or {no}.")
SEEING = tuple(vlms.DECODERS)
NATIVE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def rerankers(folders):
    """Folder, reranker, and a judge that reads every pair alone, by architecture. Not to be changed."""

    class Made(dict):
        def __missing__(self, name):
            folder = vlms.bare(folders[name])
            ours = Reranker.load(folder, device="cpu", question=ASKED)
            alone = Judge.load(folder, device="cpu", question=ASKED, share=False, tokens=1)
            self[name] = SimpleNamespace(folder=folder, ours=ours, alone=alone)
            return self[name]

    return Made()


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """Folder of a language model that reads text only."""
    return vlms.build_words(tmp_path_factory.mktemp("words") / "words")


@pytest.fixture
def sharing(monkeypatch):
    """Beginnings are shared however little that saves."""
    monkeypatch.setattr(module, "SAVED", 0)


def crossed(shapes):
    """Text, pictures and both, on either side."""
    queries = (Item("a red square", instruction="find it"), Item("like this", images=(shapes["wide"],)))
    candidates = (
        Item("a red square"),
        Item("a blue circle", instruction="not shown"),
        Item(images=(shapes["other"],)),
        Item("a", images=(shapes["plain"], shapes["tall"])),
    )
    return [(query, item) for item in candidates for query in queries]


def plain(item):
    """As sentence-transformers takes it."""
    shown = [Image.open(picture).convert("RGB") for picture in item.images]
    parts = {"image": shown[0] if len(shown) == 1 else shown} if shown else {}
    return parts | ({"text": item.text} if item.text else {})


@pytest.mark.parametrize("name", SEEING)
def test_scores_are_the_log_odds_of_yes_to_each_whole_prompt(name, rerankers, shapes, sharing):
    ours, some = rerankers[name].ours, crossed(shapes)
    truth = rerankers[name].alone.score_pairs(some)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = ours.score_pairs(some)
    np.testing.assert_allclose(together, truth, atol=1e-4, rtol=0)  # the query's beginning was computed once
    assert all(ours.chat.judge.agreed(ours.chat.prompts.kind(pair)) for pair in some)
    assert len(np.unique(together.round(5))) == len(some)
    np.testing.assert_allclose([ours.score_pairs([pair])[0] for pair in some], truth, atol=1e-4, rtol=0)
    with torch.no_grad():
        np.testing.assert_allclose(ours.forward(some), truth, atol=1e-4, rtol=0)
    lists = ours.score_lists([some[0][0], some[1][0], some[0][0]], [[i for _, i in some[::2]], [], [some[0][1]]])
    assert [len(row) for row in lists] == [4, 0, 1]
    np.testing.assert_allclose(lists[0], together[::2], atol=1e-5)
    assert isinstance(ours, Scorer)


@pytest.mark.parametrize("name", SEEING)
def test_what_is_saved_needs_nothing_but_sentence_transformers(name, rerankers, shapes, tmp_path):
    from sentence_transformers import CrossEncoder

    ours = rerankers[name].ours
    some = [pair for pair in crossed(shapes) if not pair[0].instruction]
    ours.save(tmp_path / "saved", {"steps": 3})
    theirs = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    pairs = [(plain(query), plain(item)) for query, item in some]
    truth = ours.score_pairs(some)
    for kind in {len(item.images) for _, item in some}:  # not all of their processors mix them
        rows = [n for n, (_, item) in enumerate(some) if len(item.images) == kind]
        made = theirs.predict([pairs[n] for n in rows], activation_fn=torch.nn.Identity())
        np.testing.assert_allclose(made, truth[rows], atol=1e-4, rtol=0)
    loaded = load_reranker(tmp_path / "saved", device="cpu")
    assert isinstance(loaded, Reranker)
    assert loaded.chat.asked.question == ASKED
    assert loaded.fingerprint == ours.fingerprint
    np.testing.assert_array_equal(loaded.score_pairs(some), truth)
    # An instruction is their prompt.
    told = some[0][0].text and Item(some[0][0].text, images=some[0][0].images, instruction="find it")
    made = theirs.predict([(plain(some[0][0]), plain(some[0][1]))], prompt="find it", activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(made, ours.score(told, [some[0][1]]), atol=1e-4)


def log_odds(reranker, query, candidate, template):
    """Of the answer Yes to a prompt that is written here, by hand."""
    said = f"{ASKED.text}\n\nQuery:\nFind it.\n{query}\n\nCandidate:\n{candidate}"
    text = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n" if template else f"{said}\n\nAnswer: "
    with torch.no_grad():
        logits = reranker.body.transformer(**reranker.body.tokenizer(text, return_tensors="pt")).logits[0, -1]
    yes, no = (reranker.body.tokenizer(word)["input_ids"][0] for word in ("Yes", "No"))
    return float(logits[yes] - logits[no])


@pytest.mark.parametrize("template", [vlms.STRINGS, None], ids=["template", "no template"])
def test_a_model_of_text(template, tmp_path, pictures, sharing):
    from sentence_transformers import CrossEncoder

    folder = vlms.build_words(tmp_path / "words", template)
    ours = Reranker.load(folder, device="cpu", question=ASKED, instruction="Find it.")
    alone = Judge.load(folder, device="cpu", question=ASKED, share=False)
    some = [(query, Item(text)) for query in (Item("a red bar"), Item("b")) for text in ("red", "<|im_end|> {{ blue }}")]
    told = [(Item(query.text, instruction="Find it."), item) for query, item in some]
    np.testing.assert_allclose(ours.score_pairs(some), alone.score_pairs(told), atol=1e-4)
    wanted = [log_odds(ours, query.text, item.text.replace("<|", "< |"), template) for query, item in some]
    np.testing.assert_allclose(ours.score_pairs(some), wanted, atol=1e-4)
    ours.save(tmp_path / "saved")
    theirs = CrossEncoder(str(tmp_path / "saved"), device="cpu")  # it uses the instruction by itself
    pairs = [(query.text, item.text.replace("<|", "< |")) for query, item in some]
    np.testing.assert_allclose(theirs.predict(pairs, activation_fn=torch.nn.Identity()), ours.score_pairs(some), atol=1e-4)
    with pytest.raises(BadItems, match="this model reads text only"):
        ours.score(Item("red"), [Item(images=(pictures["red square"],))])


def test_videos(rerankers, pictures):
    film = Item("b", video=tuple(pictures.values())[:2])
    for name in ("qwen2-vl", "llava"):  # one reads videos, the other their frames
        some = [(Item("red"), film), (film, Item("red"))]
        made = rerankers[name].ours.score_pairs(some)
        np.testing.assert_allclose(made, rerankers[name].alone.score_pairs(some), atol=1e-4)


def test_nothing_and_the_same_twice(rerankers, shapes, monkeypatch):
    ours, asked_of = rerankers["qwen2-vl"].ours, []
    whole = ours.chat.judge.whole
    monkeypatch.setattr(ours.chat.judge, "whole", lambda given: asked_of.append(len(given["input_ids"])) or whole(given))
    assert ours.score(Item("red"), []).shape == (0,)
    assert ours.score_lists([], []) == []
    one, two = ours.score(Item("red"), [Item("a square"), Item("a square")])
    assert one == two
    assert sum(asked_of) == 1


class TestTooLong:
    def test_what_short_texts_leave_free_goes_to_the_long(self, rerankers):
        ours, query = rerankers["qwen2-vl"].ours, Item("red", instruction="find it")
        long = Item("a red square " * 200)
        with pytest.warns(UserWarning, match=r"query and candidates come to more than the 256 tokens .* cut to equal shares"):
            _, cut = ours.chat.pair(query, long)
        assert long.text.startswith(cut.text)
        prompts = ours.chat.prompts
        length = len(prompts.ids(prompts.text(prompts.parts((query, cut)))))
        assert 240 <= length <= 256
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            assert ours.score(query, [long]) == ours.score(query, [cut])

    def test_query_and_candidate_are_cut_alike(self, rerankers, shapes):
        folder = rerankers["qwen2-vl"].folder
        ours = Reranker.load(folder, device="cpu", question=ASKED)
        query, item = Item("the red square " * 99, images=(shapes["plain"],)), Item("a blue circle " * 150)
        with pytest.warns(UserWarning, match="cut to equal shares"):
            scores = ours.score_pairs([(query, item)])
            one, two = ours.chat.pair(query, item)
        assert np.isfinite(scores).all()
        lengths = [len(ours.chat.prompts.ids(part.text)) for part in (one, two)]
        assert abs(lengths[0] - lengths[1]) <= 2
        assert min(lengths) > 50
        assert one.images == query.images

    def test_pictures_without_any_room(self, rerankers, shapes):
        pictures = (shapes["large"],) * 9
        with pytest.raises(ModelError, match="leave no room for text in the 256 tokens"):
            rerankers["qwen2-vl"].ours.score(Item("red", images=pictures), [Item("a", images=pictures)])


class TestRefuses:
    def test_no_tokens_for_the_answers(self, reading, tmp_path, monkeypatch):
        with pytest.raises(JudgeError, match=r"'Yes' and 'Yet' begin with the same token"):
            Reranker.load(reading, device="cpu", question=Question(no="Yet"))
        whole = vlms.qwen_tokenizer(vlms.CHATML).__class__.__call__

        def blind(self, text, *args, **kwargs):  # a tokenizer that knows neither word
            return whole(self, text.replace("Yes", "").replace("No", "") if isinstance(text, str) else text, *args, **kwargs)

        monkeypatch.setattr("transformers.PreTrainedTokenizerBase.__call__", blind)
        with pytest.raises(JudgeError, match=r"no token for the answer 'Yes', so that the model cannot be heard"):
            Reranker.load(reading, device="cpu")

    def test_a_question_for_a_model_that_is_not_asked(self, text_model, tmp_path):
        Reranker.start_from(text_model).save(tmp_path / "small")
        with pytest.raises(ModelError, match="this model is no chat model, so that nothing is asked of it"):
            Reranker.load(tmp_path / "small", device="cpu", question=ASKED)

    def test_weights_that_are_missing(self, reading, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(reading, tmp_path / "broken")
        weights = load_file(folder / "model.safetensors")
        save_file({k: v for k, v in weights.items() if "lm_head" not in k}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks 1 of \d+ weights \(lm_head\.weight\)"):
            Reranker.load(folder, device="cpu")

    def test_scores_that_are_no_numbers(self, reading):
        ours = Reranker.load(reading, device="cpu", question=ASKED)
        with torch.no_grad():
            ours.body.transformer.lm_head.weight[ours.chat.prompts.answers[0]] = torch.nan
        with pytest.raises(
            ModelError, match=r"no usable score for 1 pairs, first for the pair of item .*logit that is no number"
        ):
            ours.score(Item("red"), [Item("blue")])

    def test_settings_of_another_version(self):
        template = wrapped("{{ messages }}", Asked(), 0, {}, "")
        with pytest.raises(ModelError, match="saved by another version of hardwon"):
            asked(template.replace('"window"', '"hats"'))


def test_options(rerankers, shapes):
    folder = rerankers["qwen2-vl"].folder
    ours = Reranker.load(
        folder, device="cpu", question=ASKED, lora=LoRA(rank=2), max_pixels=32 * 32, dtype="bfloat16", attention="eager"
    )
    learns = [name for name, p in ours.module.named_parameters() if p.requires_grad]
    assert learns
    assert all("language_model" in name and "lora_" in name for name in learns)
    inner = ours.body.transformer
    assert inner.dtype == torch.bfloat16
    assert inner.config.get_text_config()._attn_implementation == "eager"
    assert ours.body.processor.image_processor.size["longest_edge"] == 32 * 32
    assert np.isfinite(ours.score_pairs(crossed(shapes)[:2])).all()
    frozen = Reranker.load(folder, device="cpu", question=ASKED, freeze=("vision",))
    assert not any(p.requires_grad for name, p in frozen.module.named_parameters() if ".visual." in name)
    assert any(p.requires_grad for p in frozen.module.parameters())


def test_lower_precision_stays_close(rerankers, shapes, sharing):
    some = crossed(shapes)
    fast = Reranker.load(rerankers["qwen2-vl"].folder, device="cpu", question=ASKED, precision="bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the two ways to compute agree within what bfloat16 can tell
        made = fast.score_pairs(some)
    assert 0 < np.abs(made - rerankers["qwen2-vl"].ours.score_pairs(some)).max() < 0.2


@pytest.mark.parametrize("name", ["qwen3-vl", "llava-onevision"])
def test_kept_features_make_no_difference(name, rerankers, shapes, tmp_path):
    cached = Reranker.load(rerankers[name].folder, device="cpu", question=ASKED, vision_cache=tmp_path)
    assert cached.body.vision is not None
    some = crossed(shapes)
    with torch.no_grad(), cached.evaluating():
        cached.body.prepare(some, progress=True)
        cached.body.transformer.base_model.get_image_features = None  # it is not needed any more
        made = cached.forward(some)
    np.testing.assert_allclose(made, rerankers[name].ours.score_pairs(some), atol=1e-4)


def test_a_reranker_with_a_template_of_its_own_keeps_it(rerankers, shapes, tmp_path):
    """As published ones have it: two turns, of query and document, in their own words."""
    from sentence_transformers import CrossEncoder

    rerankers["qwen2-vl"].ours.save(tmp_path / "native")
    theirs = CrossEncoder(str(tmp_path / "native"), device="cpu")
    theirs[0].processor.chat_template = NATIVE
    theirs.save(str(tmp_path / "published"), create_model_card=False)
    ours = Reranker.load(tmp_path / "published", device="cpu")
    assert ours.chat is None
    some = [(Item("red"), Item("a red square")), (Item("red"), Item("so", images=(shapes["plain"],)))]
    for query, item in some:
        truth = CrossEncoder(str(tmp_path / "published"), device="cpu").predict(
            [(plain(query), plain(item))], activation_fn=torch.nn.Identity()
        )
        np.testing.assert_allclose(ours.score(query, [item]), truth, atol=1e-5)


def test_a_template_is_wrapped_once():
    hard = Asked("listwise", Question("Say \"{yes}\" or '{no}' #} {% %} \U0001f600\n"), Listing(window=3, seed=7))
    for lead in ("", " "):
        once = wrapped("X{{ messages[0].content }}", hard, 2, {"image": "<'i'>"}, lead)
        assert asked(once) == hard
        assert original(once) == "X{{ messages[0].content }}"
        assert wrapped(once, hard, 2, {"image": "<'i'>"}, lead) == once
    from transformers.utils.chat_template_utils import render_jinja_template

    talk = [
        {"role": "query", "content": [{"type": "text", "text": "q"}, {"type": "image"}]},
        {"role": "document", "content": [{"type": "text", "text": "d"}]},
    ]
    said = render_jinja_template([talk], chat_template=once)[0][0]
    assert said == f"X{hard.question.text}\n\nQuery:\nq\n<'i'>\n\nCandidate:\nd "
    said = render_jinja_template([[{"role": "user", "content": "hi"}]], chat_template=once)[0][0]
    assert said == "Xhi"
    assert WORDING == Question().wording
