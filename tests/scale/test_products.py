"""Products by the table of the processor: every way equals the plain product within rounding, and the choice is fixed."""

import ast
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reproduce import large_decoder
from torch import nn
from torch.nn import functional as F

from vita_ref import Vita
from vita_ref.decoder import TiedHead
from vita_ref.scale import install, products
from vita_ref.scale.products import (
    LARGE,
    TABLE,
    WAYS,
    FastLinear,
    FastTiedHead,
    PackedLinear,
    can_pack,
    choose,
    fast_products,
    linear,
    pack_weight,
    packed_linears,
    use_fast_products,
)

ROOT = Path(__file__).parents[2]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
CLASS = "vita_ref.scale.products.processor_class"
ENTRIES = [(kind, *key, way) for kind, table in TABLE.items() for key, way in table.items()]


def as_a(kind):
    """This processor as one of another class."""
    return patch(CLASS, lambda: kind)


def large(rows=2, inputs=500, dtype=torch.float32):
    """Rows, a weight just above the size that the table is about, and a bias."""
    outputs = -(-LARGE // inputs) + 4
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,))]


# ---- the ways


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(list(WAYS)),
    rows=st.integers(1, 16),
    inputs=st.integers(1, 33),
    outputs=st.integers(1, 29),
    dtype=st.sampled_from(list(TOLERANCE)),
    block=st.integers(1, 99),
    seed=st.integers(0, 99),
)
def test_every_way_gives_the_same_product(name, rows, inputs, outputs, dtype, block, seed):
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, inputs, generator=g).to(dtype), torch.randn(outputs, inputs, generator=g).to(dtype)
    want = x.double() @ weight.double().T
    with patch.multiple("vita_ref.scale.blocks", BLOCK=block, OUTPUTS=1):  # so that `widened` needs several blocks
        out = WAYS[name](x, weight)
    assert out.shape == (rows, outputs) and out.dtype == dtype
    assert (out - want).abs().max() <= TOLERANCE[dtype] * (1 + want.abs().max())


def test_widened_makes_no_copy_of_the_weight_beyond_a_block(largest):
    x, weight, _ = large(rows=3, dtype=torch.bfloat16)
    with patch.multiple("vita_ref.scale.blocks", BLOCK=5_000, OUTPUTS=1), largest:
        WAYS["widened"](x, weight)
    assert largest.count <= weight.nbytes  # slices of the weight count as all of it; in float32 it would be twice that
    with largest:
        weight.float()
    assert largest.count == 2 * weight.nbytes


def test_widened_sums_in_float32_and_rounds_once():
    x, weight, _ = large(rows=3, dtype=torch.bfloat16)
    want = x.double() @ weight.double().T
    assert ((WAYS["widened"](x, weight) - want).abs() <= 2**-8 * want.abs() + 1e-4).all()


# ---- the choice


@pytest.mark.parametrize("kind, dtype, row_class, name", ENTRIES, ids=str)
def test_an_entry_of_the_table_is_what_computes_the_product(kind, dtype, row_class, name):
    rows = products.ROW_CLASSES.get(row_class, 40)
    x, weight, bias = large(rows, dtype=dtype)
    calls = []

    def spy(rows, weight):
        calls.append(rows.shape)
        return WAYS_BEFORE[name](rows, weight)

    WAYS_BEFORE = dict(WAYS)
    with as_a(kind), patch.dict(WAYS, {name: spy}):
        out = linear(x[None], weight, bias)
    assert calls == [x.shape]
    want = F.linear(x.double(), weight.double(), bias.double())
    assert (out[0] - want).abs().max() <= TOLERANCE[dtype] * (1 + want.abs().max())


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(list(TABLE)), dtype=st.sampled_from(list(TOLERANCE)), rows=st.integers(1, 40))
def test_the_choice_is_that_of_the_table_and_plain_where_it_says_nothing(kind, dtype, rows):
    x, weight, _ = large(rows, dtype=dtype)
    name = "1" if rows == 1 else "2-3" if rows < 4 else "4" if rows == 4 else "5-16" if rows < 17 else "many"
    with as_a(kind):
        assert choose(x, weight) is WAYS[TABLE[kind].get((dtype, name), "plain")]
    with as_a("other"):
        assert choose(x, weight) is WAYS["plain"]


def test_every_entry_names_a_way_that_is_not_plain():
    assert {way for *_, way in ENTRIES} == set(WAYS) - {"plain"}
    assert {row_class for _, _, row_class, _ in ENTRIES} <= {*products.ROW_CLASSES, "many"}


FEATURES = {
    "amx": {"avx2", "avx512", "vnni", "avx512_bf16", "amx_tile"},
    "avx512_bf16": {"avx2", "avx512", "vnni", "avx512_bf16"},
    "avx512_vnni": {"avx2", "avx512", "vnni"},
    "avx2": {"avx2"},
    "other": {"avx2", "avx512"},  # without VNNI: none was measured
}


@pytest.mark.parametrize("kind", FEATURES)
def test_the_class_of_a_processor_is_that_of_its_newest_features(kind):
    every = {name: lambda name=name: name in FEATURES[kind] for name in set().union(*FEATURES.values())}
    with patch.multiple("torch.cpu", **{f"_is_{name}_supported": has for name, has in every.items()}, create=True):
        assert products.processor_class.__wrapped__() == kind
    with patch("vita_ref.scale.products.torch.cpu", object()):  # a torch that does not know
        assert products.processor_class.__wrapped__() == "other"


def test_small_matrices_views_other_devices_and_gradients_take_the_plain_way():
    x, weight, bias = large(1)
    wide = torch.randn(weight.shape[1], len(weight)).T  # not contiguous
    learning = weight.clone().requires_grad_()
    with as_a("avx512_bf16"):
        assert choose(x, weight) is not WAYS["plain"]
        assert choose(x, weight[:5]) is choose(x, wide) is choose(x[:0], weight) is WAYS["plain"]
        assert choose(x.to("meta"), weight.to("meta")) is choose(x.double(), weight) is WAYS["plain"]
        assert choose(x, learning) is choose(x.clone().requires_grad_(), weight) is WAYS["plain"]
        with torch.no_grad():
            assert choose(x, learning) is not WAYS["plain"]
        got = torch.autograd.grad(linear(x, learning, bias).square().sum(), learning)[0]
    assert got.equal(torch.autograd.grad(F.linear(x, learning, bias).square().sum(), learning)[0])


# ---- the modules


@pytest.mark.parametrize("kind, dtype, row_class, name", ENTRIES, ids=str)
def test_a_fast_module_keeps_leading_dimensions_the_bias_and_a_row_without_a_batch(kind, dtype, row_class, name):
    rows = products.ROW_CLASSES.get(row_class, 40)
    x, weight, bias = large(rows, dtype=dtype)
    module = nn.Linear(weight.shape[1], len(weight)).requires_grad_(False)
    module.weight, module.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    fast, names = FastLinear(module), list(module.state_dict())
    assert list(fast.state_dict()) == names and fast.weight is module.weight and isinstance(fast, nn.Linear)
    want = F.linear(x.double(), weight.double(), bias.double())
    with as_a(kind):
        for given_x, wanted in ((x, want), (x[:, None], want[:, None]), (x[0], want[0])):
            out = fast(given_x)
            assert out.shape == wanted.shape and out.dtype == dtype
            assert (out - wanted).abs().max() <= TOLERANCE[dtype] * (1 + want.abs().max())


def uses_the_table(module, x):
    """Whether a module asks the table for its product."""
    with patch("vita_ref.scale.products.choose", return_value=WAYS["plain"]) as asked:
        module(x)
    return asked.called


def test_a_module_that_is_not_always_fast_is_so_within_fast_products_and_in_that_thread_only():
    x, weight, _ = large()
    plain_linear, table = nn.Linear(*weight.T.shape, bias=False), nn.Embedding.from_pretrained(weight)
    for fast, always in (
        (FastLinear(plain_linear, always=False), FastLinear(plain_linear)),
        (FastTiedHead(table, always=False), FastTiedHead(table)),
    ):
        assert uses_the_table(always, x) and not uses_the_table(fast, x)
        with fast_products():
            assert uses_the_table(fast, x)
            with fast_products():
                pass
            assert uses_the_table(fast, x)
            with ThreadPoolExecutor(1) as other_thread:
                assert not other_thread.submit(uses_the_table, fast, x).result()
        assert not uses_the_table(fast, x)
    with pytest.raises(KeyError), fast_products():
        raise KeyError
    assert not uses_the_table(fast, x)


def test_linear_maps_and_tied_heads_are_replaced_and_nothing_else():
    module = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 4), nn.ReLU()), "table": nn.Embedding(5, 3)})
    module["head"] = TiedHead(module["table"])
    before = {name: id(p) for name, p in module.named_parameters()}
    use_fast_products(module)
    kinds = {name: type(m) for name, m in module.named_modules() if name and name != "a"}
    assert kinds == {"a.0": FastLinear, "a.1": nn.ReLU, "table": nn.Embedding, "head": FastTiedHead}
    assert {name: id(p) for name, p in module.named_parameters()} == before


# ---- the choice of a whole model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return large_decoder(tmp_path_factory.mktemp("large") / "model")


def asked(vita, call):
    """How many products of a call ask the table."""
    with patch("vita_ref.scale.products.choose", return_value=WAYS["plain"]) as choice:
        call(vita)
    return choice.call_count


def test_plain_fast_and_auto_are_what_the_interface_says(folder):
    ids = torch.arange(1, 6)[None]
    linears = 7 + 1  # of one layer, and the tied head

    def forward(vita):
        vita(ids)

    def generate(vita):
        vita.generate(ids, max_new_tokens=3, eos_token_id=())

    counts = {}
    for kernels in ("plain", "auto", "fast"):
        vita = Vita.from_pretrained(folder, kernels=kernels)
        counts[kernels] = asked(vita, forward), asked(vita, generate)
    assert counts == {"plain": (0, 0), "auto": (0, 3 * linears), "fast": (linears, 3 * linears)}


def test_towers_are_plain_when_they_are_called_and_with_auto_fast_when_an_answer_is_generated():
    def counts(kernels):
        vita = Vita.from_pretrained("tests/golden/checkpoint", kernels=kernels)
        pixels, bank = torch.randn(1, 3, *[vita.config.vision.image_size] * 2), torch.randn(1, 40, 80)
        ids = torch.tensor([[1, vita.config.image_token_index, vita.config.audio_token_index]])
        media = {"images": pixels, "audios": {"audios": bank, "lengths": torch.tensor([40])}}

        def encode(vita):
            vita.encode_images(pixels), vita.encode_audios(bank, [40])

        def generate(vita):
            with patch.object(type(vita.decoder), "forward", side_effect=InterruptedError), pytest.raises(InterruptedError):
                vita.generate(ids, **media, max_new_tokens=1)

        towers = (vita.vision, vita.projector, vita.audio)
        linears = sum(isinstance(m, nn.Linear) for part in towers for m in part.modules())
        return asked(vita, encode), asked(vita, generate), linears

    assert counts("plain")[:2] == (0, 0)
    encoded, generated, linears = counts("auto")
    assert (encoded, generated) == (0, linears) and counts("fast") == (linears, linears, linears)


def test_options_that_do_not_exist_are_refused():
    for options, message in (
        ({"kernels": "quick"}, "kernels must be one of auto, plain, fast, got 'quick'"),
        ({"quantize": "int7"}, "quantize must be None, 'int8' or 'int4', got 'int7'"),
        ({"quantize": "int8", "pack": True}, "int8 weights cannot be packed"),
    ):
        with pytest.raises(ValueError, match=message):
            install(None, **options)


# ---- nothing is timed, and no setting of torch is changed

SETTERS = {"set_flags", "flags", "use_deterministic_algorithms", "set_float32_matmul_precision", "set_default_dtype"}
COMPUTING = ["decoder", "masks", "cache", "sampling", "vision", "audio", "splice", "image", "fbank", "speech"]
FILES = [*(ROOT / "vita_ref/scale").glob("*.py"), *(ROOT / f"vita_ref/{name}.py" for name in COMPUTING)]


def clocks_and_switches(tree):
    """Imports of clocks, and statements that change a setting of torch for all threads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", None)]
            found += [n for n in names if n in ("time", "timeit", "datetime", "perf_counter")]
        stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if stored and "torch.backends" in ast.unparse(node) or called and node.func.attr in SETTERS:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_code_that_computes_reads_no_clock_and_switches_nothing_of_torch(file):
    assert clocks_and_switches(ast.parse(file.read_text(encoding="utf-8"))) == []


def test_the_search_finds_clocks_and_switches():
    for code in (
        "import time",
        "from time import perf_counter",
        "torch.backends.mkldnn.enabled = False",
        "before, torch.backends.mkldnn.enabled = 1, 2",
        "with torch.backends.mkldnn.flags(enabled=False): pass",
        "torch.use_deterministic_algorithms(True)",
    ):
        assert clocks_and_switches(ast.parse(code))
    assert not clocks_and_switches(ast.parse("x = torch.backends.mkldnn.is_available()"))


# ---- packed weights


def processor_flags():
    info = Path("/proc/cpuinfo")
    return set(info.read_text().split()) if info.exists() else set()


def should_pack(dtype):
    """oneDNN has float32 everywhere, bfloat16 with AVX-512 and float16 not at all in this form."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and {"avx512bw", "avx512vl", "avx512dq"} <= processor_flags()


@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 20),
    inputs=st.integers(1, 33),
    outputs=st.integers(1, 29),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packed_weights_give_the_same_product_or_are_refused(dtype, rows, inputs, outputs, biased, seed):
    torch.manual_seed(seed)
    plain = nn.Linear(inputs, outputs, bias=biased).to(dtype).requires_grad_(False)
    packed = PackedLinear(plain)
    assert can_pack(dtype) == should_pack(dtype)
    if not should_pack(dtype):
        with pytest.raises(ValueError, match=f"weights in {str(dtype)[6:]} on cpu cannot be packed"):
            pack_weight(packed, "weight", plain.weight.detach())
        return
    pack_weight(packed, "weight", plain.weight.detach())
    assert list(packed.state_dict()) == list(plain.state_dict()) and packed.weight.shape == plain.weight.shape
    assert packed.weight.is_mkldnn and packed.weight.nbytes == plain.weight.nbytes
    assert packed.weight.to_dense().equal(plain.weight)
    x = torch.randn(1, rows, inputs).to(dtype)
    want = F.linear(x.double(), plain.weight.double(), plain.bias.double() if biased else None)
    with torch.inference_mode():
        for given_x, wanted in ((x, want), (x[0, 0], want[0, 0])):
            out = packed(given_x)
            assert out.shape == wanted.shape and out.dtype == dtype
            assert (out - wanted).abs().max() <= TOLERANCE[dtype] * (1 + want.abs().max())


ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@ONEDNN
def test_packed_weights_take_no_rows_and_pass_gradients_on():
    plain, x = nn.Linear(5, 4).requires_grad_(False), torch.randn(2, 3, 5, requires_grad=True)
    want = torch.autograd.grad(plain(x).square().sum(), x)[0]
    packed = PackedLinear(plain)
    pack_weight(packed, "weight", plain.weight.detach())
    assert packed(torch.zeros(2, 0, 5)).shape == (2, 0, 4)
    torch.testing.assert_close(torch.autograd.grad(packed(x).square().sum(), x)[0], want)


def test_weights_on_another_device_cannot_be_packed_and_other_tensors_are_set_as_they_are():
    packed = PackedLinear(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="weights in float32 on meta cannot be packed"):
        pack_weight(packed, "weight", torch.empty(4, 3, device="meta"))
    pack_weight(packed, "bias", bias := torch.randn(4))
    assert packed.bias.equal(bias) and not packed.bias.is_mkldnn
    norm = nn.LayerNorm(3)
    pack_weight(norm, "weight", scale := torch.randn(3))
    assert norm.weight.equal(scale) and not norm.weight.is_mkldnn


def test_every_linear_map_of_a_module_is_prepared_for_packing():
    module = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 5)))
    packed_linears(module)
    assert [type(m) for m in module.modules() if isinstance(m, nn.Linear)] == [PackedLinear] * 2


@ONEDNN
def test_a_model_with_packed_weights_answers_as_without():
    plain, packed = (Vita.from_pretrained("tests/golden/checkpoint", pack=p) for p in (False, True))
    assert packed.state_dict().keys() == plain.state_dict().keys()
    assert {m.weight.is_mkldnn for m in packed.decoder.modules() if isinstance(m, nn.Linear)} == {True}
    ids = torch.arange(1, 12)[None]
    with torch.inference_mode():
        a, b = plain(ids).logits, packed(ids).logits
    assert (a - b).abs().max() < 1e-4 * a.abs().max()
    assert plain.generate(ids, max_new_tokens=8).equal(packed.generate(ids, max_new_tokens=8))
