def test_sentences_to_the_assistant_are_a_hundred_and_balanced():
    sentences = pd.read_csv(CHINESE / "assistant.csv")
    assert not sentences["sentence"].duplicated().any() and not sentences.isna().any().any()
    test = sentences[sentences["part"] == "test"]
    assert len(test) == 100 and len(sentences) == 132
    counts = test.groupby(["language", "tool"]).size().unstack()
    assert (counts.loc["english"] == counts.loc["chinese"]).all()
    assert counts.loc["chinese"].to_dict() == {"bundle": 12, "recommend": 12, "refuse": 13, "search": 13}


def test_the_guard_lets_nothing_pass_that_the_sentence_does_not_say():
    guarded = definitions("11b_reviews_and_pictures", "guarded").guarded
    assert guarded("search: 燕麦奶", "有没有燕麦奶") == ("search", "燕麦奶")
    assert guarded("Search: Oat Milk\nand more", "have you got oat milk") == ("search", "oat milk")
    assert guarded("refuse", "tell me a joke") == ("refuse", "")
    stopped = ("", "\n", "search:", "search: ", "search", "pay: milk", "search: cow milk", "refuse: milk", "milk")
    assert not any(guarded(answer, "have you got oat milk") for answer in stopped)


def test_an_assistant_by_templates_takes_the_nearest_centroid():
    chapter = definitions("11b_reviews_and_pictures", "nearest_tool", "choose_cosine")
    vectors = np.repeat(np.eye(4), 3, axis=0)
    tools = np.repeat(["search", "recommend", "bundle", "refuse"], 3)
    said, cosine = chapter.nearest_tool(vectors, tools, np.eye(4))
    assert said[:3].tolist() == ["search", "recommend", "bundle"]
    assert cosine.tolist() == [1, 1, 1, 0] and chapter.choose_cosine(vectors, tools) == pytest.approx(0.7)


