"""From words and files to ids and tensors: what `prepare` places, reads and refuses."""

import wave
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_model import AUDIO, BINS, CONFIG, IMAGE, PIXELS, WIDTH, WordTokenizer, noise

from vita_ref.request import PreparedRequest, Request, collate, prepare_request

TOKENIZER = WordTokenizer()
PICTURE, SOUND = noise(3, PIXELS, PIXELS), noise(30, BINS)
FILM = noise(3, 3, PIXELS, PIXELS)


def words(text):
    return TOKENIZER(text).input_ids


def ready(config=CONFIG, **request):
    return prepare_request(Request(**{"raw": True} | request), config, TOKENIZER)


def ids_of(**request):
    return ready(**request).ids.tolist()


# ---- words


def test_media_that_the_text_does_not_place_stand_in_front_of_it():
    wanted = [IMAGE, IMAGE, AUDIO, *words("what is this")]
    assert ids_of(prompt="what is this", images=[PICTURE, PICTURE], audios=[SOUND]) == wanted


def test_media_stand_where_the_text_places_them():
    wanted = [*words("first"), AUDIO, *words("then"), IMAGE, *words("end")]
    assert ids_of(prompt="first <audio> then <image> end", images=[PICTURE], audios=[SOUND]) == wanted
    wanted = [IMAGE, *words("first"), AUDIO, *words("end")]  # the one in the text, the other in front
    assert ids_of(prompt="first <audio> end", images=[PICTURE], audios=[SOUND]) == wanted


def test_a_placeholder_without_its_medium_is_literal_text():
    text = "what do <image> and <audio> and <video> mean"
    assert ids_of(prompt=text) == words(text)
    assert ids_of(prompt="an <audio> tag in <image>", images=[PICTURE]) == [*words("an <audio> tag in"), IMAGE]


@pytest.mark.parametrize("kind, given", [("image", {"images": [PICTURE] * 3}), ("audio", {"audios": [SOUND] * 3})])
def test_a_wrong_count_says_both_counts(kind, given):
    with pytest.raises(ValueError, match=f"2 <{kind}> placeholders, but 3 were given"):
        ready(prompt=f"<{kind}> and <{kind}>", **given)


@pytest.mark.parametrize(
    "given, question",
    [
        ({"images": [PICTURE]}, [IMAGE, *words("Describe the image.")]),
        ({"video": FILM}, [IMAGE] * 3 + words("Describe the video.")),
        ({"audios": [SOUND]}, [AUDIO]),
        ({"images": [PICTURE], "audios": [SOUND]}, [IMAGE, AUDIO]),
    ],
)
def test_without_words_a_picture_is_to_be_described_and_a_sound_is_the_question(given, question):
    assert ids_of(**given) == question


def test_an_empty_prompt_is_not_the_same_as_none():
    assert ids_of(prompt="", images=[PICTURE]) == [IMAGE]


def test_raw_leaves_the_chat_template_out():
    assert ids_of(prompt="hello there") == words("hello there")
    framed = ids_of(prompt="hello there", raw=False)
    assert framed == words("<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n")


def test_the_system_text_is_the_requests_else_the_tokenizers():
    class Taught(WordTokenizer):
        system_prompt = "be brief"

    def text(tokenizer, **request):
        return prepare_request(Request("hello", **request), CONFIG, tokenizer).ids.tolist()

    turn = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    block = "<|im_start|>system\n{}<|im_end|>\n"
    assert text(Taught()) == words(block.format("be brief") + turn)
    assert text(Taught(), system="be long") == words(block.format("be long") + turn)
    assert text(Taught(), system="") == text(TOKENIZER) == words(turn)


def test_the_ids_of_the_placeholders_are_the_checkpoints():
    config = replace(CONFIG, image_token_index=-7, audio_token_index=-8)
    assert ready(config, prompt="", images=[PICTURE], audios=[SOUND]).ids.tolist() == [-7, -8]


# ---- media


def test_tensors_are_taken_as_they_are():
    tiles = noise(4, 3, PIXELS, PIXELS)
    got = ready(prompt="x", images=[PICTURE, tiles], audios=[SOUND, noise(9, WIDTH)])
    assert got.images[0].equal(PICTURE[None]) and got.images[1] is tiles and got.sounds[0] is SOUND
    assert got.ids.tolist() == [IMAGE] * 2 + [AUDIO] * 2 + words("x")


def test_a_film_is_one_picture_a_frame_in_the_place_of_its_placeholder():
    got = ready(prompt="<image> before <video> after <image>", images=[PICTURE, -PICTURE], video=FILM)
    assert got.ids.tolist() == [IMAGE, *words("before"), IMAGE, IMAGE, IMAGE, *words("after"), IMAGE]
    assert torch.cat(got.images).equal(torch.cat([PICTURE[None], FILM, -PICTURE[None]]))


def test_pictures_and_sounds_come_from_files(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(16000) / 5) * 9000).astype("<i2").tobytes())
    got = ready(replace(CONFIG, max_tiles=1), images=[tmp_path / "red.png"], audios=[tmp_path / "tone.wav"])
    assert got.images[0].shape == (1, 3, PIXELS, PIXELS)
    assert got.sounds[0].shape == (98, BINS)  # 1 s: (16000 - 400) / 160 + 1 frames
    assert (got.images[0] - got.images[0].mean((2, 3), keepdim=True)).abs().max() < 1e-4


def test_a_wide_picture_is_cut_into_tiles_that_one_placeholder_takes():
    wide = Image.new("RGB", (3 * PIXELS, PIXELS))
    assert ready(replace(CONFIG, max_tiles=4), images=[wide]).images[0].shape == (4, 3, PIXELS, PIXELS)
    got = ready(replace(CONFIG, max_tiles=4), images=[wide], max_tiles=1)  # the request's own limit comes first
    assert got.images[0].shape == (1, 3, PIXELS, PIXELS) and got.ids.tolist().count(IMAGE) == 1


def test_a_film_comes_from_a_folder_of_pictures(tmp_path):
    for i in range(5):
        Image.new("RGB", (40, 30), (50 * i, 0, 0)).save(tmp_path / f"{i}.png")
    got = ready(video=str(tmp_path), max_frames=4)
    assert len(got.images) == got.ids.tolist().count(IMAGE) == 4
    assert all(frame.shape == (1, 3, PIXELS, PIXELS) for frame in got.images)
    reds = [float(frame[0, 0].mean()) for frame in got.images]
    assert reds == sorted(reds)


def test_requests_become_one_batch_with_all_media_in_the_order_of_the_rows():
    first = PreparedRequest(torch.tensor([IMAGE, 7]), [PICTURE[None]], [])
    second = PreparedRequest(torch.tensor([AUDIO, IMAGE]), [FILM], [SOUND])
    got = collate([first, second])
    assert got.input_ids == [first.ids, second.ids]
    assert [x.shape[0] for x in got.images] == [1, 3] and got.audios == {"audios": [SOUND]}
    alone = collate([PreparedRequest(torch.tensor([7]), [], [])])
    assert alone.images is None and alone.audios is None


# ---- what is refused


BLIND = replace(CONFIG, vision=None, missing={"vision": "its folder was not found"})
DEAF = replace(CONFIG, audio=None)
REFUSED = {
    "nothing to answer": ({}, CONFIG, ["prompt is needed"]),
    "no words at all": ({"prompt": ""}, CONFIG, ["empty"]),
    "a picture without eyes": ({"images": [PICTURE]}, BLIND, ["cannot take images", "its folder was not found"]),
    "a film without eyes": ({"video": FILM}, BLIND, ["cannot take images"]),
    "a sound without ears": ({"audios": ["x.wav"]}, DEAF, ["cannot take sounds", "no audio part"]),
    "a picture that is not there": ({"images": ["nowhere.png"]}, CONFIG, ["nowhere.png"]),
    "a sound that is not there": ({"audios": ["nowhere.wav"]}, CONFIG, ["nowhere.wav"]),
    "a film that is not there": ({"video": "nowhere.mp4"}, CONFIG, ["nowhere.mp4"]),
    "a picture of another kind": ({"images": [3]}, CONFIG, ["image", "int"]),
    "two places for one film": ({"prompt": "<video> <video>", "video": FILM}, CONFIG, ["2 <video>", "1 video"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_that_says_what(case):
    request, config, said = REFUSED[case]
    with pytest.raises(ValueError) as caught:
        ready(config, **request)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in said), message


def test_a_checkpoint_without_a_tokenizer_says_so():
    with pytest.raises(ValueError, match="no tokenizer"):
        prepare_request(Request("hello"), CONFIG, None)
