"""The wiring: what each part gets and gives, what is refused, and the tiny model that other tests borrow.

`tiny_vita` has sizes that are pairwise different, so that no two dimensions can be mistaken for each
other, and weights large enough that a wrong position or a wrong row shows in the logits.
"""

import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vita_ref import KVCache, Vita, VitaConfig
from vita_ref.config import AudioConfig, DecoderConfig, VisionConfig
from vita_ref.decoder import Decoder
from vita_ref.request import Request

IMAGE, AUDIO, EOS = -200, -500, 5
WIDTH, BINS, VOCAB, PIXELS, VIEW = 20, 17, 53, 28, 4  # VIEW: positions that one picture takes
CLOSE = {"atol": 5e-5, "rtol": 0}
CONFIG = VitaConfig(
    DecoderConfig(VOCAB, WIDTH, 36, 3, 6, 2, 8, rope_theta=1e4),
    VisionConfig(16, 22, 1, 2, image_size=PIXELS, patch_size=7),
    AudioConfig(12, 18, 1, 3, subsampling_size=14, num_mel_bins=BINS),
    eos_token_ids=(EOS,),
    pad_token_id=0,
)


class WordTokenizer:
    """A word is an id. `decode` writes ids as numbers, so that nothing is lost on the way back."""

    bos_token_id = eos_token_id = system_prompt = None
    special_ids, leading_spaces = frozenset(), 1

    def __contains__(self, token_id):
        return 0 <= token_id < VOCAB

    def __call__(self, text, return_tensors=None):
        ids = [10 + zlib.crc32(word.encode()) % (VOCAB - 10) for word in text.split()]
        return SimpleNamespace(input_ids=ids if return_tensors is None else torch.tensor([ids]))

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(str(int(i)) for i in ids)

    def piece(self, token_id):
        return f" {token_id}".encode()

    def id_of(self, text):
        return None


def tiny_vita(seed=0, **changes):
    """A model of random weights, in eval mode and without gradients; ``changes`` go to its config."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vita = Vita(replace(CONFIG, **changes), WordTokenizer()).eval().requires_grad_(False)
        for weight in vita.parameters():
            scale = 0.2 if weight.dim() == 1 else 0.5 / weight.shape[-1] ** 0.5 + 0.15
            weight.copy_(weight * (weight.dim() == 1) + torch.randn_like(weight) * scale)
    return vita


def noise(*shape, seed=1):
    """Random numbers that depend on nothing but their seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(*row):
    return torch.tensor([row])


@pytest.fixture(scope="module")
def vita():
    return tiny_vita()


def test_a_model_builds_on_the_meta_device_and_takes_real_weights_there():
    with torch.device("meta"):
        empty = Vita(CONFIG)
    full = tiny_vita()
    empty.load_state_dict(full.state_dict(), assign=True)
    x = ids(7, IMAGE, 9, AUDIO)
    media = {"images": noise(1, 3, PIXELS, PIXELS), "audios": {"audios": noise(1, 30, BINS), "lengths": [30]}}
    torch.testing.assert_close(empty.eval()(x, **media).logits, full(x, **media).logits, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_runs_from_pixels_to_tokens(dtype):
    vita = tiny_vita().to(dtype)
    media = {"images": noise(1, 3, PIXELS, PIXELS), "audios": {"audios": noise(1, 30, BINS), "lengths": [30]}}
    out = vita(ids(7, IMAGE, 9, AUDIO), **media)
    assert out.logits.dtype == dtype and out.logits.isfinite().all()
    full = tiny_vita()(ids(7, IMAGE, 9, AUDIO), **media).logits
    torch.testing.assert_close(out.logits.float(), full, atol=0.5 if dtype == torch.bfloat16 else 0.06, rtol=0)
    assert vita.generate(ids(7, IMAGE, 9, AUDIO), **media, max_new_tokens=3, eos_token_id=()).shape == (1, 3)


def test_what_comes_back_has_the_shapes_that_the_interface_promises(vita):
    out = vita(ids(7, IMAGE, 9), images=noise(1, 3, PIXELS, PIXELS), output_hidden_states=True, output_attentions=True)
    s, c = 2 + VIEW, CONFIG.decoder
    assert out.logits.shape == (1, s, VOCAB) and out.loss is None and isinstance(out.cache, KVCache)
    assert [x.shape for x in out.hidden_states] == [(1, s, WIDTH)] * (c.num_hidden_layers + 1)
    assert [x.shape for x in out.attentions] == [(1, c.num_attention_heads, s, s)] * c.num_hidden_layers
    assert out.segments == [[("text", 0, 1), ("image", 1, 5), ("text", 5, 6)]]
    assert vita.decoder.lm_head(out.hidden_states[-1]).equal(out.logits)  # the last one is after the final norm
    plain = vita(ids(7, 8))
    assert plain.hidden_states is None and plain.attentions is None and plain.segments is None


def test_the_encoders_give_rows_as_wide_as_the_decoder(vita):
    assert vita.encode_images(noise(3, 3, PIXELS, PIXELS)).shape == (3, VIEW, WIDTH)
    heard = vita.encode_audios(noise(2, 30, BINS), [30, 15])
    assert heard.embeds.shape == (2, 3, WIDTH) and heard.lengths.tolist() == [3, 2]


def test_the_placeholders_take_the_media_in_their_order(vita):
    """What splice gets is what the encoders give, one after the other, each in its own place."""
    pictures, sounds = noise(2, 3, PIXELS, PIXELS), noise(2, 30, BINS)
    x = torch.tensor([[AUDIO, 7, IMAGE, 8], [IMAGE, 9, AUDIO, 7]])
    out = vita(x, images=pictures, audios={"audios": sounds, "lengths": [30, 23]}, output_hidden_states=True)
    seen, heard, words = vita.encode_images(pictures), vita.encode_audios(sounds, [30, 23]).embeds, vita.embed
    rows = [
        torch.cat([heard[0], words(torch.tensor([7])), seen[0], words(torch.tensor([8]))]),
        torch.cat([seen[1], words(torch.tensor([9])), heard[1], words(torch.tensor([7]))]),
    ]
    torch.testing.assert_close(out.hidden_states[0], torch.stack(rows), **CLOSE)


def test_several_tiles_of_a_list_entry_answer_one_placeholder(vita):
    tiles, single = noise(3, 3, PIXELS, PIXELS), noise(3, PIXELS, PIXELS, seed=2)
    x = ids(7, IMAGE, 8, IMAGE)
    out = vita(x, images=[tiles, single], output_hidden_states=True)
    assert out.segments[0] == [("text", 0, 1), ("image", 1, 13), ("text", 13, 14), ("image", 14, 18)]
    torch.testing.assert_close(
        out.hidden_states[0][0, 1:13], torch.cat([vita.encode_images(t[None])[0] for t in tiles]), **CLOSE
    )


def test_pictures_of_different_sizes_go_side_by_side(vita):
    x, small, wide = ids(7, IMAGE, IMAGE), noise(3, PIXELS, PIXELS), noise(3, PIXELS, 2 * PIXELS)
    out = vita(x, images=[small, wide], output_hidden_states=True)
    assert out.segments[0] == [("text", 0, 1), ("image", 1, 5), ("image", 5, 13)]
    torch.testing.assert_close(out.hidden_states[0][0, 5:], vita.encode_images(wide[None])[0], **CLOSE)


def test_film_frames_are_thinned_out_by_their_masks():
    vita = tiny_vita(vision=replace(CONFIG.vision, image_size=140))  # a grid of 10 x 10 after the shuffle
    frames = noise(2, 3, 140, 140)
    out = vita(ids(IMAGE, IMAGE, 7), images=frames, sf_masks=[1, 1])
    assert out.segments[0] == [("image", 0, 144), ("image", 144, 144 + 49), ("text", 193, 194)]
    assert vita(ids(IMAGE, IMAGE, 7), images=frames, sf_masks=[0, 0]).segments[0][1] == ("image", 100, 200)


def test_filter_banks_and_ready_embeddings_are_told_apart_by_their_width(vita):
    sound, x = noise(1, 30, BINS), ids(7, AUDIO)
    from_bank = vita(x, audios={"audios": sound, "lengths": [30]}).logits
    ready = vita.encode_audios(sound, [30]).embeds
    assert vita(x, audios={"audios": ready, "lengths": [3]}).logits.equal(from_bank)
    both = vita(ids(AUDIO, 7, AUDIO), audios={"audios": [sound[0], ready[0]]}, output_hidden_states=True)
    torch.testing.assert_close(both.hidden_states[0][0, :3], both.hidden_states[0][0, 4:], **CLOSE)


def test_a_decoder_as_wide_as_the_filter_bank_needs_to_be_told_which_it_is():
    vita = tiny_vita(decoder=replace(CONFIG.decoder, hidden_size=BINS))
    rows, x = noise(1, 23, BINS), ids(7, AUDIO)
    assert vita(x, audios={"audios": rows, "lengths": [23]}).segments[0][1] == ("audio", 1, 4)
    assert vita(x, audios={"audios": rows, "lengths": [23], "kind": "embeds"}).segments[0][1] == ("audio", 1, 24)


def test_ready_embeddings_need_no_ear():
    deaf = tiny_vita(audio=None)
    assert deaf(ids(7, AUDIO), audios={"audios": noise(1, 6, WIDTH), "lengths": [6]}).logits.shape == (1, 7, VOCAB)


@pytest.mark.parametrize("given, rows", [({}, 6), ({"lengths": [4]}, 4), ({"lengths": [75]}, 6), ({"lengths": [0]}, 0)])
def test_lengths_count_rows_and_more_than_there_are_means_all(vita, given, rows):
    out = vita(ids(7, AUDIO, 8), audios={"audios": noise(1, 6, WIDTH)} | given)
    assert out.logits.shape[1] == rows + 2


@pytest.mark.parametrize("bank, asked, rows", [(30, 60, 3), (30, 2, 2), (6, 60, 6), (6, 4, 4)])
def test_lengths_for_llm_cut_what_the_decoder_gets_and_not_what_the_ear_hears(vita, bank, asked, rows):
    width = BINS if bank == 30 else WIDTH
    sound = {"audios": noise(1, bank, width), "lengths": [bank]}
    whole = vita(ids(7, AUDIO), audios=sound, output_hidden_states=True).hidden_states[0]
    cut = vita(ids(7, AUDIO), audios=sound | {"lengths_for_llm": [asked]}, output_hidden_states=True).hidden_states[0]
    assert cut.equal(whole[:, : 1 + rows])


def test_learned_rows_stand_in_front_of_a_sound_and_are_not_counted_in_its_length():
    vita = tiny_vita(audio=replace(CONFIG.audio, num_prompts=5))
    sound = {"audios": noise(1, 30, BINS), "lengths": [30]}
    assert vita(ids(AUDIO, 7), audios=sound).segments[0][0] == ("audio", 0, 8)
    assert vita(ids(AUDIO, 7), audios=sound | {"lengths_for_llm": [2]}).segments[0][0] == ("audio", 0, 7)


def test_the_loss_is_the_mean_over_the_labels_that_are_not_below_zero(vita):
    x, labels = ids(7, 8, 9, 7, 8), ids(-100, 8, -101, -102, 8)
    out = vita(x, labels=labels)
    chances = out.logits[0].log_softmax(-1)
    torch.testing.assert_close(out.loss, -(chances[0, 8] + chances[3, 8]) / 2)


def test_gradients_reach_every_part_from_the_loss():
    vita = tiny_vita().requires_grad_(True)
    x, labels = ids(IMAGE, AUDIO, 8, 9), ids(-100, -100, 8, 9)
    media = {"images": noise(1, 3, PIXELS, PIXELS), "audios": {"audios": noise(1, 30, BINS), "lengths": [30]}}
    out = vita(x, labels=labels, **media)
    out.loss.backward()
    assert out.cache is None
    touched = {name.split(".")[0] for name, p in vita.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"decoder", "vision", "projector", "audio"}


def test_a_layer_that_fails_leaves_the_cache_as_it_was(vita, monkeypatch):
    cache = vita(ids(7, 8, 9)).cache
    before = cache.length, cache.next_positions.tolist()

    def broken(*_):
        raise RuntimeError("broken on purpose")

    with monkeypatch.context() as m:
        m.setattr(vita.decoder.layers[2].mlp, "forward", broken)
        with pytest.raises(RuntimeError, match="on purpose"):
            vita(ids(7, 8), cache=cache)
    assert (cache.length, cache.next_positions.tolist()) == before
    whole = vita(ids(7, 8, 9, 7)).logits[:, 3:]
    torch.testing.assert_close(vita(ids(7), cache=cache).logits, whole, **CLOSE)


PICTURE = noise(1, 3, PIXELS, PIXELS)
REFUSED = {
    "nothing to read": (lambda v: v(), ["input_ids", "inputs_embeds"]),
    "both ids and embeddings": (lambda v: v(ids(7), inputs_embeds=noise(1, 1, WIDTH)), ["input_ids", "inputs_embeds"]),
    "pictures beside embeddings": (lambda v: v(inputs_embeds=noise(1, 1, WIDTH), images=PICTURE), ["input_ids"]),
    "a row that is no batch": (lambda v: v(torch.tensor([7, 8])), ["input_ids", "[2]"]),
    "an id outside the vocabulary": (lambda v: v(ids(7, VOCAB)), ["0..52", "53"]),
    "a placeholder without its picture": (lambda v: v(ids(7, IMAGE)), ["1 image placeholder,", "0 images were"]),
    "a placeholder without its sound": (lambda v: v(ids(AUDIO, AUDIO)), ["2 audio placeholders", "0 audios were"]),
    "fewer pictures than placeholders": (lambda v: v(ids(IMAGE, IMAGE), images=PICTURE), ["2 image placeholders", "1 image was"]),
    "more pictures than placeholders": (lambda v: v(ids(7), images=PICTURE), ["0 image placeholders", "1 image was"]),
    "positions for a spliced prompt": (
        lambda v: v(ids(IMAGE), images=PICTURE, position_ids=ids(0)),
        ["position_ids"],
    ),
    "positions of another length": (lambda v: v(ids(7, 8), position_ids=ids(0, 1, 2)), ["position_ids", "[1, 3]"]),
    "a mask of another length": (lambda v: v(ids(7, 8), attention_mask=torch.ones(1, 3)), ["[1, 2]", "[1, 3]"]),
    "a mask of more rows": (lambda v: v(ids(7, 8), attention_mask=torch.ones(2, 2)), ["[1, 2]", "[2, 2]"]),
    "a mask that is no batch": (lambda v: v(ids(7, 8), attention_mask=torch.ones(2)), ["attention_mask", "[2]"]),
    "nothing new beside a mask": (
        lambda v: v(ids(7)[:, :0], cache=v(ids(7)).cache, attention_mask=torch.ones(1, 1)),
        ["prompt is empty"],
    ),
    "labels of another length": (lambda v: v(ids(7, 8, 9), labels=ids(7, 8)), ["labels", "[1, 3]", "[1, 2]"]),
    "labels that are a list": (lambda v: v(ids(7, 8), labels=[ids(7, 8)[0]]), ["labels", "[1, 2]", "a list"]),
    "audios that are no dict": (lambda v: v(ids(AUDIO), audios=noise(1, 6, WIDTH)), ["audios", "dict"]),
    "audios without audios": (lambda v: v(ids(AUDIO), audios={"lengths": [6]}), ["audios"]),
    "more lengths than sounds": (
        lambda v: v(ids(AUDIO), audios={"audios": noise(1, 6, WIDTH), "lengths": [6, 6]}),
        ["lengths", "1", "[6, 6]"],
    ),
    "fewer lengths_for_llm than sounds": (
        lambda v: v(ids(AUDIO, AUDIO), audios={"audios": noise(2, 6, WIDTH), "lengths_for_llm": [6]}),
        ["lengths_for_llm", "2", "[6]"],
    ),
    "a length below zero": (
        lambda v: v(ids(AUDIO), audios={"audios": noise(1, 6, WIDTH), "lengths": [-1]}),
        ["lengths", "-1"],
    ),
    "a kind of sound that there is not": (
        lambda v: v(ids(AUDIO), audios={"audios": noise(1, 6, WIDTH), "kind": "embed"}),
        ["kind", "'embed'"],
    ),
    "embeddings of another width": (
        lambda v: v(ids(7, AUDIO), audios={"audios": noise(1, 6, WIDTH + 1), "kind": "embeds"}),
        [str(WIDTH), str(WIDTH + 1)],
    ),
    "a picture without its batch": (lambda v: v(ids(IMAGE), images=noise(3, PIXELS, PIXELS)), ["[N, 3"]),
    "a mask for several frames": (lambda v: v(ids(IMAGE), images=[PICTURE.repeat(4, 1, 1, 1)], sf_masks=[1]), ["one tile"]),
    "masks for another number of frames": (lambda v: v(ids(IMAGE), images=PICTURE, sf_masks=[1, 1]), ["2 entries", "1 images"]),
    "a stride below zero": (lambda v: v(ids(IMAGE), images=PICTURE, shared_v_pid_stride=-1), ["at least 1", "-1"]),
    "no new tokens": (lambda v: v.generate(ids(7), max_new_tokens=0), ["max_new_tokens", "0"]),
    "half a token": (lambda v: v.generate(ids(7), max_new_tokens=1.5), ["max_new_tokens", "1.5"]),
    "an option out of range": (lambda v: v.generate(ids(7), max_new_tokens=1, top_p=0), ["top_p", "0"]),
    "an empty prompt": (lambda v: v.generate(ids()[:, :0].long(), max_new_tokens=1), ["empty"]),
    "an empty prompt beside others": (
        lambda v: v.generate([ids(7, 8)[0], ids()[0].long()], max_new_tokens=1),
        ["empty"],
    ),
    "a row of padding alone": (
        lambda v: v.generate(torch.tensor([[7], [8]]), attention_mask=torch.tensor([[1], [0]]), max_new_tokens=1),
        ["empty"],
    ),
    "a prompt to put in front that is not one tensor": (
        lambda v: v.generate([ids(7)[0]], max_new_tokens=1, include_prompt=True),
        ["include_prompt", "tensor"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_that_says_what(vita, case):
    call, said = REFUSED[case]
    with pytest.raises(ValueError) as caught:
        call(vita)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in said), message


def test_a_checkpoint_without_eyes_or_ears_says_so():
    blind = tiny_vita(vision=None, audio=None, missing={"vision": "its folder was not found"})
    with pytest.raises(ValueError, match="cannot take images: its folder was not found"):
        blind.encode_images(PICTURE)
    with pytest.raises(ValueError, match="cannot take sounds: it has no audio part"):
        blind.encode_audios(noise(1, 30, BINS), [30])
    assert blind(ids(7, 8)).logits.shape == (1, 2, VOCAB)


def test_quantization_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'int3'"):
        Vita.from_pretrained(tmp_path, quantize="int3")


def test_the_decoder_knows_nothing_of_images_or_sound(vita):
    assert isinstance(vita.decoder, Decoder)
    embeds = noise(1, 5, WIDTH)
    assert vita.decoder.lm_head(vita.decoder(embeds).last_hidden_state).equal(vita(inputs_embeds=embeds).logits)


def test_respond_answers_as_generate_does_on_the_prompt_that_it_prepares(vita):
    prompt = "what is this"
    x = torch.tensor([[IMAGE, *vita.tokenizer(prompt).input_ids]])
    new = vita.generate(x, images=PICTURE, max_new_tokens=6, eos_token_id=())
    asked = Request(f"<image> {prompt}", images=[PICTURE[0]], raw=True)
    assert vita.respond_batch([asked], max_new_tokens=6, eos_token_id=()) == [vita.tokenizer.decode(new[0])]
    assert vita.respond_batch([]) == []


def test_respond_stops_where_it_is_told_to_stop(vita):
    x = ids(*vita.tokenizer("one two three").input_ids)
    new = vita.generate(x, max_new_tokens=6, eos_token_id=())[0].tolist()
    stop = new[3]
    asked = Request("one two three", raw=True)
    wanted = vita.tokenizer.decode(new[: new.index(stop)])
    assert vita.respond_batch([asked], max_new_tokens=6, eos_token_id=stop) == [wanted]


def test_ids_without_a_token_say_nothing(vita, monkeypatch):
    monkeypatch.setattr(WordTokenizer, "__contains__", lambda self, token_id: token_id not in (8, VOCAB - 1))
    assert vita.text(torch.tensor([7, 8, 9, VOCAB - 1])) == "7 9"


def test_respond_takes_words_and_tensors(vita):
    text = vita.respond("what is this", images=[PICTURE[0]], audios=[noise(30, BINS)], max_new_tokens=4)
    assert isinstance(text, str)


def test_the_loss_is_the_same_on_either_side_of_the_padding(vita):
    row = ids(5, 6, 7, 8)
    left, right = (torch.cat(parts, 1) for parts in ((ids(0, 0), row), (row, ids(0, 0))))
    alone = vita(row, labels=row).loss
    for x in (left, right):
        mask = x.ne(0)
        for labels in (x, x.masked_fill(~mask, -100)):
            torch.testing.assert_close(vita(x, attention_mask=mask, labels=labels).loss, alone, **CLOSE)


def test_a_mask_over_cached_and_new_columns_goes_with_pictures_too(vita):
    first = vita(ids(7, 8))
    whole = vita(ids(7, 8, IMAGE, 9), images=PICTURE).logits[:, 2:]
    rest = vita(ids(IMAGE, 9), images=PICTURE, cache=first.cache, attention_mask=torch.ones(1, 4))
    torch.testing.assert_close(rest.logits, whole, **CLOSE)


def test_gradients_are_recorded_without_a_cache(vita):
    learner = tiny_vita()
    learner.decoder.layers.requires_grad_(True)
    out = learner(ids(7, 8, 9), labels=ids(7, 8, 9))
    out.loss.backward()
    assert out.cache is None and learner.decoder.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("pad", [-100, IMAGE, AUDIO, VOCAB, 10**6])
def test_padding_may_be_any_id(vita, pad):
    mask = torch.tensor([[0, 1, 1]])
    a, b = (vita(ids(pad, 7, 8), attention_mask=mask).logits[:, 1:] for pad in (0, pad))
    torch.testing.assert_close(a, b, **CLOSE)


def test_requests_and_embeddings_that_do_not_fit_are_refused(vita):
    with pytest.raises(ValueError, match="picture"):
        vita.respond_batch([{"prompt": "x", "picture": "y"}])
    with pytest.raises(ValueError, match=f"{WIDTH}"):
        vita(inputs_embeds=noise(1, 2, WIDTH + 1))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        vita(ids(IMAGE), images=PICTURE, shared_v_pid_stride=0)


def test_ready_embeddings_can_be_asked_about_without_an_ear():
    deaf = tiny_vita(audio=None)
    assert isinstance(deaf.respond("what is this", audios=[noise(4, WIDTH)], max_new_tokens=2), str)
