"""From text and files to ids and tensors: where `prepare_request` puts media, how it reads them, and what it refuses."""

import io
import wave
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from test_model import (
    AUDIO,
    BINS,
    CONFIG,
    IMAGE,
    PIXELS,
    VIEW,
    WIDTH,
    WordTokenizer,
    noise,
    tiny_vita,
)

from vita_ref.fbank import log_mel
from vita_ref.prompt import TEMPLATES
from vita_ref.request import (
    PreparedRequest,
    Request,
    as_request,
    check_length,
    collate,
    count_positions,
    prepare_request,
)

TOKENIZER = WordTokenizer()
TILE, SOUND = noise(3, PIXELS, PIXELS), noise(30, BINS)
FRAMES = noise(3, 3, PIXELS, PIXELS)


def ids_of_text(text):
    return TOKENIZER(text).input_ids


def prepare(config=CONFIG, **request):
    return prepare_request(Request(**{"raw": True} | request), config, TOKENIZER)


def ids_of_request(**request):
    return prepare(**request).ids.tolist()


# ---- text


def test_media_without_placeholders_are_put_in_front_of_the_text():
    expected = [IMAGE, IMAGE, AUDIO, *ids_of_text("what is this")]
    assert ids_of_request(prompt="what is this", images=[TILE, TILE], audios=[SOUND]) == expected


def test_media_take_the_places_of_their_placeholders():
    expected = [*ids_of_text("first"), AUDIO, *ids_of_text("then"), IMAGE, *ids_of_text("end")]
    assert ids_of_request(prompt="first <audio> then <image> end", images=[TILE], audios=[SOUND]) == expected
    expected = [IMAGE, *ids_of_text("first"), AUDIO, *ids_of_text("end")]  # the sound has a placeholder, the image is put in front
    assert ids_of_request(prompt="first <audio> end", images=[TILE], audios=[SOUND]) == expected


def test_a_placeholder_of_a_kind_that_is_not_given_is_literal_text():
    text = "what do <image> and <audio> and <video> mean"
    assert ids_of_request(prompt=text) == ids_of_text(text)
    assert ids_of_request(prompt="an <audio> tag in <image>", images=[TILE]) == [*ids_of_text("an <audio> tag in"), IMAGE]


@pytest.mark.parametrize("kind, given", [("image", {"images": [TILE] * 3}), ("audio", {"audios": [SOUND] * 3})])
def test_a_wrong_number_of_media_is_refused_with_both_numbers(kind, given):
    with pytest.raises(ValueError, match=f"2 <{kind}> placeholders, but 3 were given"):
        prepare(prompt=f"<{kind}> and <{kind}>", **given)


@pytest.mark.parametrize(
    "given, question",
    [
        ({"images": [TILE]}, [IMAGE, *ids_of_text("Describe the image.")]),
        ({"video": FRAMES}, [IMAGE] * 3 + ids_of_text("Describe the video.")),
        ({"audios": [SOUND]}, [AUDIO]),
        ({"images": [TILE], "audios": [SOUND]}, [IMAGE, AUDIO]),
    ],
)
def test_without_a_prompt_images_and_videos_are_described_and_a_sound_is_the_question(given, question):
    assert ids_of_request(**given) == question


def test_an_empty_prompt_adds_no_default_question():
    assert ids_of_request(prompt="", images=[TILE]) == [IMAGE]


def test_raw_leaves_the_chat_template_out():
    assert ids_of_request(prompt="hello there") == ids_of_text("hello there")
    templated = ids_of_request(prompt="hello there", raw=False)
    assert templated == ids_of_text("<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n")


def test_the_system_text_is_that_of_the_request_or_else_that_of_the_tokenizer():
    class WithSystemPrompt(WordTokenizer):
        system_prompt = "be brief"

    def text(tokenizer, **request):
        return prepare_request(Request("hello", **request), CONFIG, tokenizer).ids.tolist()

    turn = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    block = "<|im_start|>system\n{}<|im_end|>\n"
    assert text(WithSystemPrompt()) == ids_of_text(block.format("be brief") + turn)
    assert text(WithSystemPrompt(), system="be long") == ids_of_text(block.format("be long") + turn)
    assert text(WithSystemPrompt(), system="") == text(TOKENIZER) == ids_of_text(turn)


@pytest.mark.parametrize(
    "medium, given", [("image", {"images": [TILE]}), ("video", {"video": FRAMES}), ("lang", {"audios": [SOUND]})]
)
def test_the_default_system_text_of_vitas_template_depends_on_the_media(medium, given):
    config = replace(CONFIG, template="vita")
    ids = prepare(config, prompt="hello", raw=False, **given).ids
    assert ids[ids >= 0].tolist() == ids_of_text(
        f"<|im_start|>system\n{TEMPLATES['vita'].default_system[medium]}<|im_end|>\n"
        "<|im_start|>user\n hello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_placeholder_ids_are_those_of_the_config():
    config = replace(CONFIG, image_token_index=-7, audio_token_index=-8)
    assert prepare(config, prompt="", images=[TILE], audios=[SOUND]).ids.tolist() == [-7, -8]


# ---- media


def test_tensors_are_used_unchanged():
    tiles = noise(4, 3, PIXELS, PIXELS)
    got = prepare(prompt="x", images=[TILE, tiles], audios=[SOUND, noise(9, WIDTH)])
    assert got.images[0].equal(TILE[None]) and got.images[1] is tiles and got.sounds[0] is SOUND
    assert got.ids.tolist() == [IMAGE] * 2 + [AUDIO] * 2 + ids_of_text("x")


def test_the_frames_of_a_video_take_the_place_of_its_placeholder_one_by_one():
    got = prepare(prompt="<image> before <video> after <image>", images=[TILE, -TILE], video=FRAMES)
    assert got.ids.tolist() == [IMAGE, *ids_of_text("before"), IMAGE, IMAGE, IMAGE, *ids_of_text("after"), IMAGE]
    assert torch.cat(got.images).equal(torch.cat([TILE[None], FRAMES, -TILE[None]]))


def test_images_and_sounds_are_read_from_files(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    samples = (np.sin(np.arange(16000) / 5) * 9000).astype("<i2")
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    got = prepare(replace(CONFIG, max_tiles=1), images=[tmp_path / "red.png"], audios=[tmp_path / "tone.wav"])
    [tile], [bank] = got.images, got.sounds
    assert tile.shape == (1, 3, PIXELS, PIXELS)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CONFIG.vision.image_mean, CONFIG.vision.image_std))
    torch.testing.assert_close(tile[0], ((torch.tensor([1.0, 0.0, 0.0])[:, None, None] - mean) / std).expand_as(tile[0]))
    assert bank.shape == (98, BINS)  # 1 s: (16000 - 400) / 160 + 1 frames
    torch.testing.assert_close(bank, log_mel(torch.from_numpy(samples / 32768).float()[None], 16000, num_mel_bins=BINS))


def test_an_image_may_be_an_array_a_pil_image_a_path_or_a_file_object(tmp_path):
    levels = np.random.default_rng(3).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    image.save(tmp_path / "a.png")
    buffer = io.BytesIO((tmp_path / "a.png").read_bytes())
    want = prepare(images=[image]).images[0]
    for source in (levels, str(tmp_path / "a.png"), tmp_path / "a.png", buffer, levels[:, ::-1][:, ::-1]):
        assert prepare(images=[source]).images[0].equal(want)
        if source is not buffer:  # one image stands for a list of one
            assert prepare(images=source).images[0].equal(want)
    opaque = np.concatenate([levels, np.full((30, 40, 1), 255, np.uint8)], 2)
    assert prepare(images=opaque).images[0].equal(want)
    gray = prepare(images=levels[:, :, 0]).images[0]
    assert gray.equal(prepare(images=np.repeat(levels[:, :, :1], 3, 2)).images[0])
    assert len(prepare(images=np.stack([levels, levels])).images) == 2  # several arrays in one
    assert len(prepare(images=(x for x in [levels, levels])).images) == 2


def test_a_tensor_of_several_tiles_takes_one_placeholder_and_of_several_batches_several():
    tiles = noise(2, 4, 3, PIXELS, PIXELS)
    assert prepare(prompt="a", images=tiles[0]).ids.tolist() == [IMAGE, *ids_of_text("a")]
    assert prepare(prompt="a", images=tiles).ids.tolist() == [IMAGE, IMAGE, *ids_of_text("a")]
    assert prepare(prompt="a", audios=noise(3, 30, BINS)).ids.tolist() == [AUDIO] * 3 + ids_of_text("a")


def test_a_sound_may_be_a_waveform_with_its_rate():
    wave = torch.linspace(-1, 1, 8000).sin()
    want = log_mel(wave[None], 8000, num_mel_bins=BINS)
    other = torch.stack([wave, -wave])  # the first channel is heard
    for samples in (wave, wave.numpy(), wave.double(), other, other.numpy(), wave.numpy().astype(">f8")):
        for audios in ([(samples, 8000)], (samples, 8000), [(samples, np.int64(8000))], [(samples, 8000.0)]):
            [bank] = prepare(prompt="", audios=audios).sounds
            torch.testing.assert_close(bank, want)
    two = prepare(prompt="", audios=((wave, 8000), (other, 8000))).sounds
    assert len(two) == 2 and two[0].equal(two[1])
    assert prepare(prompt="", audios=SOUND.numpy()).sounds[0].equal(SOUND)


WAVE = torch.zeros(16000)
WRONG_MEDIA = {
    "a picture of integers": ({"images": [TILE.long()]}, ["int64", "floating"]),
    "an array of floats": ({"images": [np.zeros((9, 9, 3))]}, ["uint8", "float64 [9, 9, 3]"]),
    "an array with two channels": ({"images": [np.zeros((9, 9, 2), np.uint8)]}, ["[H, W, 3 or 4]", "[9, 9, 2]"]),
    "an empty array": ({"images": [np.zeros((0, 9, 3), np.uint8)]}, ["[0, 9, 3]"]),
    "a video of one frame without its dimension": ({"video": TILE}, ["a video", "[N, 3, Y, X]"]),
    "a video of bytes": ({"video": FRAMES * 255}, ["a video", "not normalised"]),
    "two videos": ({"video": ["a.mp4", "b.mp4"]}, ["one video", "list of 2"]),
    "samples without a rate": ({"audios": [WAVE]}, ["(waveform, rate)", "[16000]"]),
    "a number for a sound": ({"audios": [3]}, ["a sound must be", "int"]),
    "integer samples": ({"audios": (WAVE.short(), 16000)}, ["floats in -1..1", "int16"]),
    "samples in the range of integers": ({"audios": (WAVE + 3e4, 16000)}, ["-1..1", "30000"]),
    "channels behind samples": ({"audios": (WAVE.view(-1, 2), 16000)}, ["[C, W]", "[8000, 2]"]),
    "samples that are not finite": ({"audios": (WAVE / 0, 16000)}, ["waveform", "not finite"]),
    "a rate of 1 Hz": ({"audios": (WAVE, 1)}, ["1000 to 1000000 Hz", "got 1"]),
    "a rate that is no number": ({"audios": (WAVE, float("nan"))}, ["Hz", "nan"]),
    "no samples": ({"audios": (WAVE[:0], 16000)}, ["no samples"]),
    "a bank of another width": ({"audios": [noise(30, BINS + 1)]}, [f"[J, {BINS}]", f"[30, {BINS + 1}]"]),
    "a question that is no text": ({"prompt": 5}, ["prompt must be a string", "int"]),
    "half a character": ({"prompt": "a\ud800"}, ["prompt is not valid Unicode", "character 1"]),
    "no tiles": ({"prompt": "a", "max_tiles": 0}, ["max_tiles", "at least 1", "0"]),
    "no frames a second": ({"prompt": "a", "fps": 0}, ["fps", "above 0"]),
}


@pytest.mark.parametrize("case", WRONG_MEDIA)
def test_media_and_fields_of_another_kind_are_refused_with_the_expected_form(case):
    request, parts = WRONG_MEDIA[case]
    with pytest.raises(ValueError) as caught:
        prepare(**request)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_a_request_may_be_a_prompt_a_dict_or_a_request_and_takes_what_it_leaves_out_from_the_others():
    common = {"system": "be brief", "raw": True}
    assert as_request("hi", common) == as_request({"prompt": "hi"}, common) == Request("hi", **common)
    assert as_request({"prompt": "hi", "raw": False}, common) == Request("hi", system="be brief")
    assert as_request(Request("hi", system="be long"), common) == Request("hi", system="be long", raw=True)
    with pytest.raises(ValueError, match="prompt, images.*picture"):
        as_request({"picture": "x"})


def test_respond_and_respond_batch_take_every_field_of_a_request():
    vita, wide = tiny_vita(max_tiles=4), Image.effect_noise((3 * PIXELS, PIXELS), 50)
    for fields in ({"system": "be brief"}, {"raw": True}, {"max_tiles": 1}, {"fps": 2.0, "max_frames": 3}):
        with patch("vita_ref.model.prepare_request", wraps=prepare_request) as calls:
            answer = vita.respond("what is this", wide, max_new_tokens=2, **fields)
            questions = ["hi", {"prompt": "what is this", "images": wide} | fields, Request("hi")]
            assert vita.respond_batch(questions, max_new_tokens=2, **fields)[1] == answer
        for call in calls.call_args_list:
            assert {name: getattr(call.args[0], name) for name in fields} == fields
    with patch("vita_ref.request.video.iterate_frames", return_value=[wide]) as load:
        vita.respond("what", video="a.mp4", fps=2, max_frames=3, max_new_tokens=1)
    load.assert_called_once_with("a.mp4", fps=2, max_frames=3)


def test_the_tiles_of_a_wide_image_take_one_placeholder():
    wide = Image.new("RGB", (3 * PIXELS, PIXELS))
    assert prepare(replace(CONFIG, max_tiles=4), images=[wide]).images[0].shape == (4, 3, PIXELS, PIXELS)
    got = prepare(replace(CONFIG, max_tiles=4), images=[wide], max_tiles=1)  # the limit of the request has priority
    assert got.images[0].shape == (1, 3, PIXELS, PIXELS) and got.ids.tolist().count(IMAGE) == 1


def test_a_video_may_be_a_folder_of_images(tmp_path):
    for i in range(5):
        Image.new("RGB", (40, 30), (50 * i, 0, 0)).save(tmp_path / f"{i}.png")
    got = prepare(video=str(tmp_path), max_frames=4)
    assert len(got.images) == got.ids.tolist().count(IMAGE) == 4
    assert all(frame.shape == (1, 3, PIXELS, PIXELS) for frame in got.images)
    reds = [float(frame[0, 0].mean()) for frame in got.images]
    assert reds == sorted(set(reds))  # four different frames, in order


@pytest.mark.parametrize("aspect_ratio", ["pad", "square"])
def test_video_frames_are_padded_to_a_square_if_the_config_says_so_and_cropped_otherwise(tmp_path, aspect_ratio):
    """The frame is white at its left and right quarter, and black between them: a crop leaves no white."""
    frame = Image.new("RGB", (80, 40))
    frame.paste("white", (0, 0, 20, 40))
    frame.paste("white", (60, 0, 80, 40))
    frame.save(tmp_path / "0.png")
    got = prepare(replace(CONFIG, image_aspect_ratio=aspect_ratio), video=str(tmp_path), max_frames=1)
    row = got.images[0][0, 0, PIXELS // 2]  # the middle row of the tile
    assert bool(row[0] > row[PIXELS // 2] + 1) == (aspect_ratio == "pad")


def test_a_batch_of_requests_has_all_media_in_the_order_of_its_rows():
    tiles = TILE[None]
    first = PreparedRequest(torch.tensor([IMAGE, 7]), [tiles], [])
    second = PreparedRequest(torch.tensor([AUDIO, IMAGE]), [FRAMES], [SOUND])
    got = collate([first, second])
    assert got.input_ids == [first.ids, second.ids]
    assert got.images[0] is tiles and got.images[1] is FRAMES and len(got.images) == 2
    assert got.audios == {"audios": [SOUND]}
    alone = collate([PreparedRequest(torch.tensor([7]), [], [])])
    assert alone.images is None and alone.audios is None


# ---- how many positions a prompt takes


@pytest.mark.parametrize(
    "fields, counts",
    [
        ({"prompt": "one two three"}, {"text": 3, "image": 0, "audio": 0}),
        ({"prompt": "one", "images": [TILE, noise(2, 3, PIXELS, PIXELS)]}, {"text": 1, "image": 3 * VIEW, "audio": 0}),
        ({"prompt": "one <audio> two", "audios": [SOUND]}, {"text": 2, "image": 0, "audio": 3}),  # 30 frames: 3 positions
        ({"prompt": "one", "audios": [noise(9, WIDTH)]}, {"text": 1, "image": 0, "audio": 9}),  # embeddings: one each
        ({"prompt": "one", "video": FRAMES, "audios": [SOUND]}, {"text": 1, "image": 3 * VIEW, "audio": 3}),
    ],
)
def test_positions_are_counted_by_kind_as_the_splice_makes_them(fields, counts):
    prepared, total = prepare(**fields), sum(counts.values())
    assert count_positions(CONFIG, prepared) == check_length(CONFIG, prepared) == counts | {"total": total, "cut": 0}
    assert tiny_vita().inputs(collate([prepared])).embeds.shape[1] == total


@pytest.mark.parametrize("limit, kept", [(1, (1, 0, 0)), (3, (1, 2, 0)), (6, (2, 4, 0)), (8, (2, 4, 2)), (9, (2, 4, 3))])
def test_positions_beyond_the_longest_prompt_are_counted_as_cut(limit, kept):
    prepared = prepare(prompt="one <image> two <audio>", images=[TILE], audios=[SOUND])  # 1 + 4 + 1 + 3
    config = replace(CONFIG, tokenizer_model_max_length=limit)
    counts = dict(zip(("text", "image", "audio"), kept)) | {"total": limit, "cut": 9 - limit}
    assert count_positions(config, prepared) == counts
    if limit < 9:
        with pytest.raises(ValueError, match=f"takes 9 positions, but this checkpoint takes at most {limit}"):
            check_length(config, prepared)


@pytest.mark.parametrize("frames", [1, 6])
def test_a_sound_that_is_too_short_is_refused_with_its_length(frames):
    text = f"a sound of {frames} filter-bank frame{'' if frames == 1 else 's'} is too short: at least 7 are needed"
    with pytest.raises(ValueError, match=text):
        count_positions(CONFIG, prepare(prompt="", audios=[noise(frames, BINS)]))


# ---- refused requests


NO_VISION = replace(CONFIG, vision=None, missing={"vision": "its folder was not found"})
NO_AUDIO = replace(CONFIG, audio=None)
REFUSED = {
    "no prompt and no media": ({}, CONFIG, ["prompt is needed"]),
    "an empty prompt": ({"prompt": ""}, CONFIG, ["empty"]),
    "an image without a vision tower": ({"images": [TILE]}, NO_VISION, ["cannot take images", "its folder was not found"]),
    "a video without a vision tower": ({"video": FRAMES}, NO_VISION, ["cannot take images"]),
    "a sound without an audio encoder": ({"audios": ["x.wav"]}, NO_AUDIO, ["cannot take sounds", "no audio part"]),
    "an image file that does not exist": ({"images": ["nowhere.png"]}, CONFIG, ["nowhere.png"]),
    "a sound file that does not exist": ({"audios": ["nowhere.wav"]}, CONFIG, ["nowhere.wav"]),
    "a video file that does not exist": ({"video": "nowhere.mp4"}, CONFIG, ["nowhere.mp4"]),
    "an image of another type": ({"images": [3]}, CONFIG, ["image", "int"]),
    "two placeholders for one video": ({"prompt": "<video> <video>", "video": FRAMES}, CONFIG, ["2 <video>", "1 video"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_requests_are_refused_in_one_line_with_the_reason(case):
    request, config, parts = REFUSED[case]
    with pytest.raises(ValueError) as caught:
        prepare(config, **request)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_a_request_to_a_checkpoint_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="no tokenizer"):
        prepare_request(Request("hello"), CONFIG, None)
