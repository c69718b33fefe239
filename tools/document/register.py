"""The claims of upstream's language-model-layer.md about sizes, by line: the register that `check.py` reads.

Every shape, length, amount of memory and number of parameters in the document is a claim. The claims about one
quantity stand together, with a function that gives the true value (``r`` is a `Run` of run.py) and the verdict. So do
the document's statements about speech: what it is made from, and which stage an option changes. The document itself
is not here, only its figures and line numbers. Left out: times, sampling options, line ranges of upstream's files,
and the id of <video> (line 385), which has no counterpart in the ``documented`` preset.

Figures that depend on a tokenizer are taken from the document and marked "given": no tokenizer is used.

A claim is written as in the document: ``"[B, S, 151936]"`` is a shape; ``"1.5 GB"`` holds if the true value rounds to
these digits; an int is exact. MB are 10^6 bytes, as in the document's own 16.8 MB for 1025 x 4096 in float32. Memory
is that of float32, the document's dtype, unless the claim says otherwise.

Test: ``pytest tests/tools/test_document_check.py``
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch.nn import Parameter

from tools.document.run import (
    ASK_AUDIO,
    ASK_IMAGE,
    ASK_TEXT,
    FOUR,
    SEVEN,
    SOUND_FRAMES,
    decoder_sizes,
    parameter_count,
)

# The document's letters in its batch of four. S_out: the 100 new tokens of its example; T_audio: a second of speech.
LETTERS = {"B": 4, "S": 1091, "S-1": 1090, "B*(S-1)": 4360, "V": 151936, "T'": 60, "S_out": 100, "T_audio": 24000}


@dataclass(frozen=True)
class Quantity:
    """One size, and the document's claims about it as {figure: line or lines}.

    ``truth`` takes a `Run` and gives the true value. ``arithmetic`` derives it: a Python expression with the same value.
    """

    name: str
    truth: Callable
    holds: dict = field(default_factory=dict)
    contradicts: dict = field(default_factory=dict)  # another line has another figure
    wrong: dict = field(default_factory=dict)  # no line has the right one
    arithmetic: str = ""
    note: str = ""


IMAGES = (920, 1315, 1602, 1605, 1692, 1753, 1809, 1972, 1975)  # lines with an image's shape
IMAGES += (2050, 2053, 2144, 2147, 2172, 2228, 2234, 2246)
LISTED = "the list spells a placeholder as three tokens; to the splice it is one id"
TWICE = "; words and marks are {}: a placeholder counts as a token, and again as its features"
TEN = "; the document has 10 bytes a number"

QUANTITIES = [
    # ---- the decoder's sizes
    Quantity("vocabulary", lambda r: r.decoder.embed_tokens.num_embeddings, holds={151936: (28, 381)}),
    Quantity(
        "width of a row in the decoder",
        lambda r: r.decoder.embed_tokens.embedding_dim,
        holds={4096: (28, 841, 1363)},
        contradicts={1025: 1477, 60: 1478},
        note="1025 and 60 are how many rows an image and a sound have",
    ),
    Quantity(
        "longest context (a setting)", lambda r: r.config.decoder.max_position_embeddings, holds={32768: (29, 860)}
    ),
    Quantity("decoder layers", lambda r: len(r.decoder.layers), holds={32: (30, 461, 1254, 1413, 1453)}),
    Quantity("attention heads", lambda r: r.four.attentions[0].shape[1], holds={32: 1362}),
    Quantity("size of a head", lambda r: r.attention.head_dim, holds={128: 1367}),
    Quantity("heads x their size", lambda r: r.query.transpose(1, 2).shape[2:], holds={"[32, 128]": 837}),
    Quantity(
        "MLP: in, hidden, out",
        lambda r: (r.mlp.gate_proj.in_features, r.mlp.up_proj.out_features, r.mlp.down_proj.out_features),
        holds={"[4096, 11008, 4096]": 842},
    ),
    Quantity(
        "Qwen2-7B: layers, width, heads, kv heads, MLP",
        lambda r: decoder_sizes("qwen2-7b"),
        wrong={"[32, 4096, 32, 32, 11008]": (15, 854)},
        note="sizes as in lines 28, 30, 837 and 842: not those of the model that is named here",
    ),
    Quantity("id of an image placeholder", lambda r: r.config.image_token_index, holds={151936: 383}),
    Quantity(
        "largest id in a prompt",
        lambda r: max(r.config.image_token_index, r.config.audio_token_index),
        holds={151937: 384},
        contradicts={151935: 381},
        note="ids end at the vocabulary in line 381, but placeholders lie beyond it",
    ),
    # ---- parameters and weights
    Quantity(
        "parameters of the decoder",
        lambda r: parameter_count(r.decoder),
        wrong={"7 billion": (846, 854, 1181, 1448), "7.0 billion": 1329},
        arithmetic="2 * 151936 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 + 3 * 4096 * 11008 + 2 * 4096) + 4096",
        note="8.42 billion with vision tower and audio encoder",
    ),
    Quantity("weights in FP32", lambda r: 4 * parameter_count(r.decoder), wrong={"28 GB": 855}, arithmetic="4 * 7_721_324_544"),
    Quantity(
        "weights in FP16",
        lambda r: 2 * parameter_count(r.decoder),
        wrong={"14 GB": 856, "14.0 GB": 1329},
        arithmetic="2 * 7_721_324_544",
    ),
    Quantity("weights in INT8", lambda r: parameter_count(r.decoder), wrong={"7 GB": 857}, note="a byte a weight"),
    Quantity(
        "weights of one layer in FP32",
        lambda r: 4 * parameter_count(r.decoder.layers[0]),
        wrong={"28 GB": 847},
        arithmetic="4 * (4 * 4096**2 + 3 * 4096 + 3 * 4096 * 11008 + 2 * 4096)",
        note="line 855 has the same 28 GB for all 32 layers",
    ),
    Quantity(
        "parameters among the batch's embeddings",
        lambda r: sum(x.numel() for x in [r.inputs(FOUR).embeds] if isinstance(x, Parameter)),
        wrong={"18 million": 1177},
        note="4 x 1091 x 4096 = 17.9 million numbers, but activations, not parameters",
    ),
    # ---- images
    Quantity("an image", lambda r: r.image_shape, holds={"[3, 448, 448]": IMAGES}),
    Quantity("images", lambda r: (4, *r.image_shape), holds={"[B, 3, 448, 448]": (169, 324)}),
    Quantity("a batch of one image", lambda r: (1, *r.image_shape), holds={"[1, 3, 448, 448]": 936}),
    Quantity("class token, patches", lambda r: r.patches, holds={"[1, 1024]": 392}),
    Quantity("features of a batch of images", lambda r: r.image_features.shape, holds={"[B, 1025, 4096]": (23, 389)}),
    Quantity(
        "features of an image", lambda r: r.image_features[0].shape, holds={"[1025, 4096]": (449, 1045, 1176, 1224, 1315, 1318)}
    ),
    Quantity("positions of an image", lambda r: len(r.image_features[0]), holds={1025: (1227, 1308, 1311)}),
    Quantity("positions of two images", lambda r: r.media_positions(SEVEN, 4, "image"), holds={2050: 1870}),
    Quantity("features of an image, memory", lambda r: r.image_features[0].nbytes, holds={"16.8 MB": 1315}),
    # ---- sounds
    Quantity(
        "features of a batch of sounds", lambda r: r.encode_sounds(SOUND_FRAMES, 4).shape, holds={"[B, T', 4096]": (24, 396)}
    ),
    Quantity(
        "sounds as features",
        lambda r: r.encode_sounds(SOUND_FRAMES, 4).shape,
        holds={"[B, T', 4096]": (170, 325)},
        note="features in the place of filter banks, as in line 974",
    ),
    Quantity("a batch of one sound", lambda r: r.encode_sounds(SOUND_FRAMES).shape, holds={"[1, 60, 4096]": 974}),
    Quantity(
        "features of the sound",
        lambda r: r.sound.shape,
        holds={"[60, 4096]": (1046, 1316, 1318, 1781, 1810, 1982, 2053, 2154, 2240, 2247), "[T', 4096]": (452, 2173)},
        contradicts={"[75, 4096]": (1176, 1610, 1612)},
    ),
    Quantity(
        "rows of the sound",
        lambda r: len(r.sound),
        holds={60: (990, 1010, 1227, 1311)},
        contradicts={75: (1795, 1826)},
        note='as "lengths" beside a sound of 60 rows',
    ),
    Quantity(
        "filter bank of the sound",
        lambda r: (SOUND_FRAMES, r.config.audio.num_mel_bins),
        wrong={"[60, 80]": 1316},
        note="60 frames give (60 + 1) // 8 = 7 positions; 60 positions take 479 to 486 frames",
    ),
    Quantity(
        "frames for each position (T' = T / this)",
        lambda r: r.frames_per_row(),
        wrong={4: 399},
        arithmetic="(959 - 479) // (120 - 60)",
        note="two convolutions in the encoder and one in the adapter halve time",
    ),
    Quantity("features of the sound, memory", lambda r: r.sound.nbytes, holds={"0.98 MB": 1316}),
    Quantity(
        "sounds of 50 and 60 rows as one tensor",
        lambda r: r.stack(50, 60),
        wrong={"a stack": 1737},
        note="torch.stack wants equal shapes",
    ),
    # ---- image and sound together, and neither
    Quantity("<image><audio>, spliced", lambda r: r.row((0, 1, 1)).shape, holds={"[1085, 4096]": (1048, 1227)}),
    Quantity("<image><audio>, memory", lambda r: r.row((0, 1, 1)).nbytes, holds={"17.8 MB": 1318}),
    Quantity("sound of input 2", lambda r: (r.media_positions(FOUR, 1, "audio"), r.width), holds={"[0, 4096]": 1225}),
    Quantity(
        "embeddings of input 3",
        lambda r: r.row(FOUR[2]).shape,
        holds={"[6, 4096]": 1226},
        contradicts={"[2, 4096]": 1317},
    ),
    # ---- token lists of the four prompts, as given
    Quantity(
        "input 1, tokens listed (given)", lambda r: 8, holds={8: 1038}, contradicts={7: (1038, 1217, 1965)}, note=LISTED
    ),
    Quantity("input 2, tokens listed (given)", lambda r: 5, holds={5: (1039, 1218, 1966)}),
    Quantity("input 3, tokens listed (given)", lambda r: 6, holds={6: (1040, 1219, 1967)}),
    Quantity(
        "input 4, tokens listed (given)", lambda r: 10, holds={10: 1041}, contradicts={8: (1041, 1220)}, note=LISTED
    ),
    Quantity(
        "input 1, of text in the list (given)", lambda r: 5, holds={5: 1038}, contradicts={6: (1038, 1217, 1308, 1965)}
    ),
    Quantity("input 4, of text in the list (given)", lambda r: 4, holds={4: 1041}, contradicts={6: (1041, 1220, 1311)}),
    Quantity("input 1, text behind the image (given)", lambda r: 1, holds={1: 1038}, contradicts={0: 1231}),
    Quantity("input 4, text behind the image (given)", lambda r: 2, holds={2: 1041}, contradicts={0: 1234}),
    # ---- lengths after the splice
    Quantity(
        "input 1, length",
        lambda r: r.lengths(FOUR)[0],
        holds={1031: (1168, 1231, 1308, 1552, 1965, 2050)},
        arithmetic="6 + 1025",
        note="6 text tokens given, of which line 1038 lists 5",
    ),
    Quantity(
        "input 2, length",
        lambda r: r.lengths(FOUR)[1],
        holds={5: (1232, 1309, 1553, 1966, 2051)},
        contradicts={78: 1169},
        note="78 = 3 + 75: a sound that the other lines do not count",
    ),
    Quantity(
        "input 3, length", lambda r: r.lengths(FOUR)[2], holds={6: (1233, 1310, 1967, 2052)}, contradicts={2: 1170}
    ),
    Quantity(
        "input 4, length",
        lambda r: r.lengths(FOUR)[3],
        holds={1091: (1234, 1311, 1554)},
        contradicts={1100: 1171},
        arithmetic="6 + 1025 + 60",
        note="1100 = 15 + 1025 + 60 is the length of another prompt, in line 1869",
    ),
    Quantity(
        "<image><audio>, length",
        lambda r: r.lengths(((0, 1, 1),))[0],
        holds={1085: (1968, 2053)},
        arithmetic="1025 + 60",
    ),
    Quantity(
        "realistic input 1, length",
        lambda r: r.lengths(SEVEN)[0],
        holds={1034: 1866},
        arithmetic="9 + 1025",
        note="9 text tokens given" + TWICE.format(8),
    ),
    Quantity("realistic input 2, length", lambda r: r.lengths(SEVEN)[1], holds={10: 1867}, note="10 text tokens given"),
    Quantity("realistic input 3, length", lambda r: r.lengths(SEVEN)[2], holds={8: 1868}, note="8 text tokens given"),
    Quantity(
        "realistic input 4, length",
        lambda r: r.lengths(SEVEN)[3],
        holds={1100: 1869},
        arithmetic="15 + 1025 + 60",
        note="15 text tokens given" + TWICE.format(13),
    ),
    Quantity(
        "realistic input 5, length",
        lambda r: r.lengths(SEVEN)[4],
        holds={2128: 1870},
        arithmetic="18 + 2 * 1025 + 60",
        note="18 text tokens given" + TWICE.format(15),
    ),
    Quantity("realistic input 6, length", lambda r: r.lengths(SEVEN)[5], holds={1085: 1871}, arithmetic="1025 + 60"),
    Quantity(
        "realistic input 7, length",
        lambda r: r.lengths(SEVEN)[6],
        holds={1129: 1872},
        arithmetic="44 + 1025 + 60",
        note="44 text tokens given" + TWICE.format(42),
    ),
    Quantity(
        "length to which the four are padded",
        lambda r: r.four.logits.shape[1],
        holds={1091: (1052, 1053, 1238, 1239, 1240, 1241, 1363, 1407, 1559, 1561)},
        contradicts={1100: (1182, 1482)},
    ),
    Quantity("rows in the batch", lambda r: r.four.logits.shape[0], holds={4: (1363, 1407, 1560)}),
    # ---- padding and positions
    Quantity(
        "input 1, padding", lambda r: int((~r.counted.attention_mask[0]).sum()), holds={60: 1238}, contradicts={0: 1308}
    ),
    Quantity(
        "input 2, padding",
        lambda r: int((~r.counted.attention_mask[1]).sum()),
        holds={1086: 1239},
        contradicts={0: 1309},
    ),
    Quantity(
        "input 3, padding",
        lambda r: int((~r.counted.attention_mask[2]).sum()),
        holds={1085: 1240},
        contradicts={0: 1310},
    ),
    Quantity("input 4, padding", lambda r: int((~r.counted.attention_mask[3]).sum()), holds={0: (1241, 1311)}),
    Quantity("input 1, last position id", lambda r: int(r.counted.position_ids[0].max()), holds={1030: 1245}),
    Quantity("input 2, last position id", lambda r: int(r.counted.position_ids[1].max()), holds={4: 1246}),
    Quantity("input 3, last position id", lambda r: int(r.counted.position_ids[2].max()), holds={5: 1247}),
    Quantity("input 4, last position id", lambda r: int(r.counted.position_ids[3].max()), holds={1090: 1248}),
    Quantity(
        "position id of padding",
        lambda r: int(r.counted.position_ids[~r.counted.attention_mask].max()),
        holds={0: (1245, 1246, 1247)},
    ),
    # ---- what goes in
    Quantity("token ids", lambda r: r.text.logits.shape[:2], holds={"[B, S]": (22, 82, 164, 323, 379)}),
    Quantity("labels", lambda r: r.text.logits.shape[:2], holds={"[B, S]": (87, 168)}),
    Quantity(
        "attention mask",
        lambda r: r.inputs(FOUR).mask.shape,
        holds={"[4, 1091]": (1060, 1323), "[B, S]": (83, 166, 403)},
        contradicts={"[4, 1100]": 1379},
    ),
    Quantity(
        "position ids",
        lambda r: r.inputs(FOUR).positions.shape,
        holds={"[B, S]": (84, 165, 409), "[4, 1091]": (1061, 1324)},
    ),
    Quantity(
        "embeddings of the batch",
        lambda r: r.inputs(FOUR).embeds.shape,
        holds={"[4, 1091, 4096]": (1059, 1252, 1322, 1363, 1410), "[B, S, 4096]": (86, 1619)},
        contradicts={"[4, 1100, 4096]": 1177},
    ),
    Quantity("embeddings of a row", lambda r: r.inputs(FOUR).embeds[0].shape, holds={"[S, 4096]": 460}),
    Quantity("embeddings of the batch, FP32", lambda r: r.inputs(FOUR).embeds.nbytes, holds={"71.5 MB": 1322}),
    Quantity(
        "embeddings of the batch, FP16",
        lambda r: r.inputs(FOUR).embeds.half().nbytes,
        wrong={"35.8 MB": 1322},
        arithmetic="4 * 1091 * 4096 * 2",
        note="half of 71.5, which was rounded already",
    ),
    Quantity(
        "attention mask, memory",
        lambda r: r.inputs(FOUR).mask.nbytes,
        wrong={"0.02 MB": 1323},
        arithmetic="4 * 1091",
        note="a bool takes 1 byte, not 4",
    ),
    Quantity(
        "position ids, memory",
        lambda r: r.inputs(FOUR).positions.nbytes,
        wrong={"0.02 MB": 1324},
        arithmetic="4 * 1091 * 8",
        note="a long takes 8 bytes, not 4",
    ),
    Quantity(
        "input 1, memory",
        lambda r: r.row(FOUR[0]).nbytes,
        wrong={"4.2 MB": 1308},
        arithmetic="1031 * 4096 * 4",
        note="line 1315 has 16.8 MB for fewer rows; here a number takes 1 byte",
    ),
    Quantity(
        "input 2, memory",
        lambda r: r.row(FOUR[1]).nbytes,
        wrong={"0.02 MB": 1309},
        arithmetic="5 * 4096 * 4",
        note="1 byte a number",
    ),
    Quantity(
        "input 3, memory",
        lambda r: r.row(FOUR[2]).nbytes,
        contradicts={"0.02 MB": 1310, "0.03 MB": 1317},
        arithmetic="6 * 4096 * 4",
        note="1 byte a number, and 2 rows of the 6",
    ),
    Quantity(
        "input 4, memory",
        lambda r: r.row(FOUR[3]).nbytes,
        wrong={"4.5 MB": 1311},
        arithmetic="1091 * 4096 * 4",
        note="1 byte a number",
    ),
    # ---- one layer
    Quantity("queries", lambda r: r.query.shape, holds={"[4, 32, 1091, 128]": 1365}),
    Quantity("keys", lambda r: r.four.cache[0][0].shape, holds={"[4, 32, 1091, 128]": (1260, 1325, 1365)}),
    Quantity("values", lambda r: r.four.cache[0][1].shape, holds={"[4, 32, 1091, 128]": 1365}),
    Quantity(
        "what RoPE rotates",
        lambda r: r.rotated().shape,
        wrong={"[4, 1091, 4096]": 1253},
        note="it rotates queries and keys in every layer and adds nothing to the embeddings",
    ),
    Quantity(
        "attention map",
        lambda r: r.four.attentions[0].shape,
        holds={"[4, 32, 1091, 1091]": (1260, 1330, 1367, 1369)},
        contradicts={"[4, 32, 1100, 1100]": 1183},
    ),
    Quantity(
        "attention map of a layer, memory",
        lambda r: r.four.attentions[0].nbytes,
        wrong={"1.5 GB": 1330},
        arithmetic="4 * 32 * 1091 * 1091 * 4",
        note="19.5 GB for all 32 layers" + TEN,
    ),
    Quantity("weighted values", lambda r: r.weighted().shape, holds={"[4, 32, 1091, 128]": 1371}),
    Quantity(
        "heads side by side", lambda r: r.weighted().transpose(1, 2).flatten(2).shape, holds={"[4, 1091, 4096]": 1373}
    ),
    Quantity(
        "hidden states",
        lambda r: r.four.hidden_states[-1].shape,
        holds={"[B, S, 4096]": 113, "[4, 1091, 4096]": (1255, 1331)},
    ),
    Quantity("hidden states, memory", lambda r: r.four.hidden_states[-1].nbytes, holds={"71.5 MB": 1331}),
    Quantity(
        "KV cache of a layer, memory",
        lambda r: r.decoder.new_cache(4, 1091).nbytes // len(r.decoder.layers),
        wrong={"178.8 MB": 1325},
        arithmetic="2 * 4 * 32 * 1091 * 128 * 4",
        note="71.5 MB for keys and as much for values, 4.58 GB for all 32 layers" + TEN,
    ),
    Quantity(
        "KV cache for 2048 positions, memory",
        lambda r: r.decoder.new_cache(1, 2048).nbytes,
        holds={"2 GB": 848},
        arithmetic="2 * 32 * 32 * 2048 * 128 * 4",
        note="one row in FP32",
    ),
    # ---- how memory grows: the power of the length
    Quantity("growth of attention with length", lambda r: r.exponent(lambda n: r.attention_map(n).nbytes), holds={2: (836, 1447)}),
    Quantity("growth of the input with length", lambda r: r.exponent(lambda n: r.embed(n).nbytes), holds={1: 1445}),
    Quantity(
        "growth of the KV cache with length",
        lambda r: r.exponent(lambda n: r.decoder.new_cache(1, n).nbytes),
        holds={1: 1446},
        contradicts={2: 1446},
        note="its own O(b n h d) has n once",
    ),
    # ---- logits and loss
    Quantity(
        "logits",
        lambda r: r.four.logits.shape,
        holds={"[B, S, 151936]": 116, "[B, S, V]": 417},
        contradicts={"[4, 1091, 128256]": (1255, 1332, 1423)},
        note="128256 is the vocabulary of another family, Llama 3",
    ),
    Quantity(
        "logits, memory",
        lambda r: r.four.logits.nbytes,
        wrong={"2.1 GB": 1332},
        arithmetic="4 * 1091 * 151936 * 4",
        note="2.24 GB with the 128256 of the same line",
    ),
    Quantity("logits that have a label", lambda r: r.text.logits[:, :-1].shape, holds={"[B, S-1, 151936]": 122}),
    Quantity("labels of those", lambda r: r.text.logits[:, 1:, 0].shape, holds={"[B, S-1]": 123}),
    Quantity("the same, flat", lambda r: r.text.logits[:, :-1].flatten(0, 1).shape, holds={"[B*(S-1), 151936]": 127}),
    Quantity("their labels, flat", lambda r: r.text.logits[:, 1:, 0].flatten().shape, holds={"[B*(S-1)]": 128}),
    # ---- generation
    Quantity("text prompt (given)", lambda r: r.ids(ASK_TEXT)[None].shape, holds={"[1, 8]": 871}),
    Quantity("tokens of the text prompt (given)", lambda r: len(r.ids(ASK_TEXT)), holds={8: (872, 892)}),
    Quantity("image prompt (given)", lambda r: r.ids(ASK_IMAGE)[None].shape, holds={"[1, 9]": 926}),
    Quantity("audio prompt (given)", lambda r: r.ids(ASK_AUDIO)[None].shape, holds={"[1, 10]": 980}),
    Quantity(
        "text prompt and answer",
        lambda r: r.generated_shape((ASK_TEXT,), new=50),
        holds={"[1, 58]": 891},
        note="with include_prompt=True; upstream's generate gives the 50 new ones alone",
    ),
    Quantity("image prompt and answer", lambda r: r.generated_shape((ASK_IMAGE,), new=100), holds={"[1, 109]": 942}),
    Quantity("audio prompt and answer", lambda r: r.generated_shape((ASK_AUDIO,), new=100), holds={"[1, 110]": 996}),
    Quantity(
        "answers of the four",
        lambda r: r.generated_shape(FOUR, new=100, include_prompt=False),
        holds={"[B, S_out]": (34, 423), "[4, 100]": 1187},
    ),
    Quantity(
        "attention of the image's position",
        lambda r: r.attention_row(ASK_IMAGE).shape,
        wrong={"[32, 109]": 964},
        note="one pass over 8 + 1025 positions; 109 is the length of prompt and answer",
    ),
    Quantity(
        "attention of the sound's position",
        lambda r: r.attention_row(ASK_AUDIO).shape,
        wrong={"[32, 110]": 1018},
        note="one pass over 9 + 60 positions; 110 is the length of prompt and answer",
    ),
    # ---- speech
    Quantity(
        "sound of a batch of codec tokens",
        lambda r: r.waveforms(40).shape,
        holds={"[B, T_audio]": 35},
        note="T_audio = 600 x codec tokens; those are made for one sentence at a time, so that B is 1",
    ),
    Quantity(
        "what speech is made from",
        lambda r: r.speech_source(),
        holds={"text": (790, 797, 800)},
        contradicts={"decoder layers": 44},
        note="other weights in the layers give the same sound; of the decoder it takes the embedding table alone",
    ),
    Quantity("what speech features are made from", lambda r: r.spoken_text(), holds={"processed text": (811, 815)}),
    Quantity(
        "a voice",
        lambda r: r.voice_argument(),
        wrong={"a name": (792, 802)},
        note="a list of codes, one for each of the codec's global books",
    ),
    Quantity(
        "first stage that the voice changes",
        lambda r: r.first_changed_stage(voice=[0] * len(r.speaker.speech.codec.config.global_tokens)),
        wrong={"features": 816},
        note="the codec tokens are the same in every voice",
    ),
    Quantity("default speed", lambda r: r.default_speed(), holds={1.0: 793}),
    Quantity("what a speed does to the sound", lambda r: r.speed_meaning(0.5, 1.5, 2.0), holds={"a multiplier": 803}),
    Quantity(
        "first stage that the speed changes",
        lambda r: r.first_changed_stage(speed=1.5),
        wrong={"features": 817},
        note="the codec tokens are the same at every speed: the finished sound is stretched",
    ),
    Quantity("what is saved, given no path", lambda r: r.saved(None), holds={"nothing": (791, 825)}),
    Quantity("what is saved, given a path", lambda r: r.saved("answer.wav"), holds={"audio": (801, 826)}),
]
