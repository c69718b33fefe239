"""What is remembered of conversations: exactly what was computed, for the longest common beginning, in bounded memory."""

import pytest
import torch
from serving import image_part, text_part, tiny_vita, user

from vita_ref.serve.group import run_group, together
from vita_ref.serve.jobs import AnswerJob, Done, Part, prompt_of
from vita_ref.serve.prefixes import Prefixes, equal_messages
from vita_ref.serve.questions import read_question


@pytest.fixture(scope="module")
def vita(tmp_path_factory):
    return tiny_vita(tmp_path_factory.mktemp("tiny"))


def job(vita, prefixes, *messages, **options):
    events = []
    body = {"model": "tiny", "messages": list(messages), "max_tokens": 4, **options}
    made = AnswerJob(read_question(body, vita, prefixes.media), events.append)
    made.prepare(vita, vita.chat(), prefixes)
    return made, events


def answer(vita, prefixes, *messages, **options):
    """Answers one conversation. Returns its text and its numbers."""
    made, events = job(vita, prefixes, *messages, **options)
    list(run_group(vita, [made], prefixes))
    return "".join(each.text for each in events if isinstance(each, Part)), events[-1]


def said(text):
    return {"role": "assistant", "content": text.strip()}


def test_keys_and_values_of_rows_of_a_batch_are_those_of_each_alone(vita):
    questions = [
        [user("A question")],
        [user(image_part(), text_part("Another one, which is longer than the first"))],
        [user("C?")],
    ]
    batch, alone = Prefixes(), Prefixes()
    jobs = [job(vita, batch, *each, max_tokens=2 + i)[0] for i, each in enumerate(questions)]
    list(run_group(vita, jobs, batch))
    for i, each in enumerate(questions):
        answer(vita, alone, *each, max_tokens=2 + i)
    assert len(batch) == len(alone) == 3
    for a, b in zip(batch._kept, alone._kept):
        ids = [[x for x in each.elements if isinstance(x, int)] for each in (a, b)]
        assert ids[0][: len(ids[1])] == ids[1] and a.length - b.length in (
            0,
            1,
        )  # the last id of a row that ended early is read too
        torch.testing.assert_close(a.keys[:, :, : b.length], b.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.values[:, :, : b.length], b.values, atol=1e-5, rtol=1e-5)


def test_rows_that_continue_prefixes_of_different_lengths_answer_as_without_them(vita):
    prefixes = Prefixes()
    histories = [
        [user("One")],
        [user("A second, longer beginning of a conversation")],
        [user(image_part(), text_part("Third"))],
    ]
    for history in histories:
        history += [said(answer(vita, prefixes, *history)[0]), user("And then?")]
    fresh = [user("Something new")]
    made = [job(vita, prefixes, *history) for history in [*histories, fresh]]
    pasts = [each.past for each, _ in made]
    assert len(set(pasts[:3])) == 3 and min(pasts[:3]) > 20 > pasts[3]
    list(run_group(vita, [each for each, _ in made], prefixes))
    texts = ["".join(x.text for x in events if isinstance(x, Part)) for _, events in made]
    without = []
    for history in [*histories, fresh]:
        own = Prefixes()
        if len(history) > 1:
            answer(vita, own, *history[:1])  # so that the answer has the ids that were generated
            own._kept[0].keys, own._kept[0].values = (x[:, :, :0] for x in (own._kept[0].keys, own._kept[0].values))
        text, done = answer(vita, own, *history)
        assert done.cached_tokens == 0
        without.append(text)
    assert texts == without


def test_a_prompt_continues_the_prefix_with_most_in_common(vita):
    prefixes, system = Prefixes(), {"role": "system", "content": "A long system text that all conversations begin with."}
    answer(vita, prefixes, system, user("One"))
    _, second = answer(vita, prefixes, system, user("Two"))
    assert second.cached_tokens >= len("<|im_start|>system\n" + system["content"]) - 24
    first = [system, user("One")]
    text, again = answer(vita, prefixes, *first)
    assert again.cached_tokens == again.prompt_tokens - 1  # the last position is always read
    _, longer = answer(vita, prefixes, *first, said(text), user("More"))
    assert longer.cached_tokens > again.prompt_tokens


def test_the_same_picture_with_another_question_is_not_encoded_again(vita, monkeypatch):
    prefixes = Prefixes()
    answer(vita, prefixes, user(image_part(), text_part("What?")))
    monkeypatch.setattr(vita, "encode_images", lambda *args, **options: pytest.fail("encoded again"))
    _, done = answer(vita, prefixes, user(text_part("Now "), image_part(), text_part(" is in another place")))
    assert done.cached_tokens < done.image_tokens + 40
    with pytest.raises(BaseException, match="encoded again"):
        answer(vita, prefixes, user(image_part(color=(1, 1, 1)), text_part("What?")))


def test_memory_is_bounded_and_the_oldest_prefixes_are_given_up(vita):
    prefixes = Prefixes(most=3)
    for i in range(5):
        answer(vita, prefixes, user(image_part(color=(i, i, i)), text_part(f"{i}")))
    assert len(prefixes) == len(prefixes.media) == 3
    assert [each.messages[0].parts[1] for each in prefixes._kept] == ["4", "3", "2"]
    one = prefixes._kept[0]
    assert one.keys.untyped_storage().nbytes() == one.keys.nbytes == one.length * 2 * 3 * 4 * 4  # layers, heads, width, bytes
    assert all(medium.data is None for medium in prefixes.media.values())  # only features are kept
    small = Prefixes(most_bytes=prefixes.nbytes // 3 + 500)
    for i in range(5):
        answer(vita, small, user(image_part(color=(i, i, i)), text_part(f"{i}")))
        assert small.nbytes <= small.most_bytes
    assert 1 <= len(small) < 3
    nothing = Prefixes(most_bytes=100)
    answer(vita, nothing, user("Too large to keep"))
    assert len(nothing) == 0 and nothing.media == {}


def test_a_conversation_that_goes_on_replaces_its_beginning(vita):
    prefixes, history = Prefixes(), []
    for i in range(4):
        history.append(user(f"Turn {i}"))
        history.append(said(answer(vita, prefixes, *history)[0]))
    assert len(prefixes) == 1


def test_an_answer_that_the_client_has_changed_is_read_as_it_is_sent(vita):
    prefixes = Prefixes()
    answer(vita, prefixes, user("One"))
    history = [user("One"), said("Something else"), user("Two")]
    changed, done = answer(vita, prefixes, *history)
    assert done.cached_tokens < done.prompt_tokens - 20
    assert changed == answer(vita, Prefixes(), *history)[0]
    question = read_question({"messages": history}, vita, prefixes.media)
    assert equal_messages(question.messages, prefixes._kept[-1].messages) in (1, 3)


def test_jobs_are_answered_together_only_if_that_helps(vita):
    prefixes = Prefixes()
    a, b = (job(vita, prefixes, user(text))[0] for text in ("One", "Two"))
    long, sampled, greedy = (
        job(vita, prefixes, user(text), **options)[0]
        for text, options in (("x" * 400, {}), ("One", {"temperature": 0.7}), ("One", {"temperature": 0}))
    )
    assert together([a, b, greedy], 512)
    assert not together([a, b, long], 512)  # nearly all would be padding
    assert not together([a, sampled], 512)
    assert not together([a, b], max(a.length, b.length) + 3)  # no room
    b.alone = True
    assert not together([a, b], 512)


def test_a_row_without_finite_logits_fails_alone(vita, monkeypatch):
    prefixes = Prefixes()
    (good, heard), (bad, failed) = (job(vita, prefixes, user(text)) for text in ("Fine", "Not fine"))
    head = vita.decoder.lm_head.forward

    def broken(hidden):
        logits = head(hidden)
        if len(logits) > 1:
            logits[1] = float("nan")
        return logits

    monkeypatch.setattr(vita.decoder.lm_head, "forward", broken)
    list(run_group(vita, [good, bad], prefixes))
    assert isinstance(heard[-1], Done) and "not finite" in str(failed[-1])
    assert len(prefixes) == 1
    monkeypatch.undo()
    assert "".join(x.text for x in heard if isinstance(x, Part)) == answer(vita, Prefixes(), user("Fine"))[0]


def test_the_room_for_an_answer_is_what_is_left_of_the_context(vita):
    question = read_question({"messages": [user("x" * 300)]}, vita)
    elements, most = prompt_of(question, vita, vita.chat())
    assert len(elements) + most == 512
    question = read_question({"messages": [user("x" * 300)], "max_tokens": 7}, vita)
    assert prompt_of(question, vita, vita.chat())[1] == 7
