"""Draws calls of the four verbs, sound ones and all sorts of others, from a number; it makes none of them."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

VERBS = ("nearest_neighbors", "kmeans", "tsne", "score_clusters")
ODD_NUMBERS = (
    *(None, True, False, 0, -1, 1.0, 2.5, math.nan, math.inf, "3", b"2", [1], (), {}, 2**31, 2**63, 2**70, -(2**70)),
    *(np.float32(2), np.bool_(True), np.array(2), np.array([1, 2]), torch.tensor(2), 3j, object()),
)
ODD_KINDS = (
    *("none", "text", "texts", "objects", "structured", "masked", "torch masked", "sparse", "csr", "meta", "nested"),
    *("complex", "complex numpy", "float8", "quantised", "dates", "ragged", "bytes", "scalar", "tensors", "dict"),
)
TORCH_KINDS = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16),
    *(torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64),
)
NUMPY_KINDS = ("f4", "f8", "f2", "?", "u1", "i1", "i2", "i4", "i8", "u2", "u4", "u8", ">f4", ">i8", "g")


class Drawn(NamedTuple):
    """An argument, and whether there is nothing wrong with it; of points what they hold in float64."""

    value: Any
    sound: bool
    exact: np.ndarray | None = None


@dataclass
class Call:
    """A call of a verb: sound where it has to be answered; tame where float64 tells the very answer."""

    verb: str
    args: dict[str, Any]
    sound: bool
    native: bool
    exact: dict[str, np.ndarray | None] = field(default_factory=dict)
    tame: bool = False

    def told(self) -> str:
        """Say in a line what is called with what."""
        parts = [f"{name}={_told(value)}" for name, value in self.args.items()]
        return f"{self.verb}({', '.join(parts)}){'' if self.native else ' in torch'}"


def draw_call(seed: int, number: int) -> Call:
    """Draw the call of this number."""
    return _Draw(np.random.default_rng([seed, number])).call()


def _told(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        kind = "np" if isinstance(value, np.ndarray) else "torch"
        return f"<{kind} {value.dtype} {tuple(value.shape) if not getattr(value, 'is_nested', False) else 'nested'}>"
    return f"{value!r:.60}"


class _Draw:
    """One stream of random choices."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def often(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def one(self, of: Any) -> Any:
        return of[int(self.random.integers(len(of)))]

    def call(self) -> Call:
        verb = VERBS[int(self.random.choice(4, p=[0.4, 0.3, 0.15, 0.15]))]
        # most calls are wrong in one place at most
        self.oddity = self.one((0.0, 0.0, 0.02, 0.1))
        call = getattr(self, f"_{verb}")(self._place())
        if self.often(self.oddity):
            call.args["engine"], call.sound = self.one(("fuse", None, 3, "rapids", "", ["fused"], True)), False
        elif self.often(0.03 if "map" in _listed(call.args.get("spaces")) else 0.25):
            call.args["engine"] = "reference"
        elif self.often(0.5):
            call.args["engine"] = "fused"
        return call

    def _place(self) -> tuple[int | None, int, int]:
        """Choose layers, points and width."""
        layers = None if self.often(0.4) else int(self.random.integers(0 if self.often(0.03) else 1, 5))
        n = int(self.random.integers(0, 61)) if self.often(0.9) else int(self.random.integers(0, 4))
        d = int(self.one((1, 2, 3, 8, 16, 33, 64, 65, 70))) if self.often(0.97) else 0
        return layers, n, d

    # points

    def points(self, place: tuple[int | None, int, int], *, alone: bool = True) -> Drawn:
        """Draw points of this shape; alone: where nothing else has to fit them, in any shape."""
        self.tame_values = True
        if self.often(self.oddity):
            return Drawn(self._odd_points(place), False)
        layers, n, d = place
        asked = shape = (n, d) if layers is None else (layers, n, d)
        if alone and self.often(self.oddity):
            shape = tuple(int(x) for x in self.random.integers(0, 5, self.one((0, 1, 2, 3, 4))))
        values = self._values(shape)
        drawn, exact = self._held(values)
        limit = np.finfo(np.float32).max / (2 * math.sqrt(max(d, 1)))
        sound = shape == asked and d > 0 and layers != 0 and exact is not None
        sound = sound and bool(np.isfinite(exact).all()) and bool((abs(exact) <= limit).all())
        return Drawn(drawn, sound, exact)

    def _values(self, shape: tuple[int, ...]) -> np.ndarray:
        values = self.random.normal(size=shape)
        if self.often(0.3):
            values = values + 4 * self.random.integers(0, 3, (*shape[:-1], 1) if shape else ())
        if self.often(0.1) and shape and shape[0]:
            self.tame_values = False
            values = values[self.random.integers(0, 1 + shape[0] // 3, shape[0])]
        if self.often(0.03):
            self.tame_values = False
            values = np.full(shape, self.random.normal())
        if self.often(0.05):
            values = np.round(values)
            self.tame_values = False
        kind = self.one(("as is", "as is", "modest", "any", "offset", "mixed", "outlier"))
        if kind == "modest":
            values = values * 10 ** self.random.uniform(-3, 3)
        elif kind == "any":
            values = values * 10 ** self.random.uniform(-45, 38.5)
        elif kind == "offset":
            values = values + 10 ** self.random.uniform(0, 10)
        elif kind == "mixed":
            values = values * 10 ** self.random.uniform(-40, 36, shape if self.often(0.5) else shape[-1:])
        elif kind == "outlier" and values.size:
            values.flat[int(self.random.integers(values.size))] *= 10 ** self.random.uniform(5, 39)
        self.tame_values &= kind in ("as is", "modest")
        if self.often(self.oddity) and values.size:
            at = self.random.integers(values.size, size=self.one((1, 3)))
            values.flat[at] = self.one((math.nan, math.inf, -math.inf))
        return values

    def _held(self, values: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Put values into some kind of array, and tell what it then holds."""
        with np.errstate(all="ignore"):
            if self.often(0.5):
                return self._in_torch(values)
            kind = np.dtype(self.one(NUMPY_KINDS) if self.often(0.6) else "f4")
            self.tame_values &= kind in (np.float32, np.float64)
            if kind.kind in "iub":
                values = np.nan_to_num(values, posinf=1e18, neginf=-1e18)
                values = np.abs(values) if kind.kind == "u" else values
                values = np.clip(values, -9e18, 9e18)
            array = np.array(values).astype(kind)
        exact = _exactly(array)
        way = self.one(("plain", "plain", "list", "backwards", "fortran", "apart", "fixed", "matrix", "unaligned"))
        if way == "list":
            self.tame_values &= array.dtype == np.float64
            # an empty list does not know its width
            return (array.tolist(), exact) if array.size and kind != np.dtype("g") else (array, exact)
        if way == "backwards" and array.ndim:
            array = array[::-1].copy()[::-1]
        elif way == "fortran":
            array = np.asfortranarray(array)
        elif way == "apart" and array.ndim:
            array = np.repeat(array, 2, axis=-1)[..., ::2]
        elif way == "fixed":
            array.flags.writeable = False
        elif way == "unaligned" and array.dtype.itemsize > 1:
            room = np.empty(array.nbytes + 1, dtype=np.uint8)
            room[1:] = np.frombuffer(array.tobytes(), dtype=np.uint8)
            array = np.frombuffer(room, dtype=array.dtype, offset=1, count=array.size).reshape(array.shape)
        return array, exact

    def _in_torch(self, values: np.ndarray) -> tuple[torch.Tensor, np.ndarray | None]:
        kind = self.one(TORCH_KINDS) if self.often(0.6) else torch.float32
        self.tame_values &= kind in (torch.float32, torch.float64)
        if not kind.is_floating_point:
            bounds = (0, 1) if kind == torch.bool else (torch.iinfo(kind).min, torch.iinfo(kind).max)
            values = np.clip(np.nan_to_num(values), max(bounds[0], -9e18), min(bounds[1], 9e18))
        tensor = torch.tensor(values, dtype=torch.float64)
        tensor = tensor.long().to(kind) if not kind.is_floating_point else tensor.to(kind)
        way = self.one(("plain", "plain", "turned", "apart", "expanded", "grown", "negated", "inference"))
        if way == "turned" and tensor.ndim > 1:
            tensor = tensor.mT.contiguous().mT
        elif way == "apart" and tensor.ndim:
            tensor = tensor.repeat_interleave(2, -1)[..., ::2]
        elif way == "grown" and kind.is_floating_point:
            tensor.requires_grad_()
        elif way == "negated" and kind in (torch.float32, torch.float64):
            tensor = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
        elif way == "inference":
            with torch.inference_mode():
                tensor = tensor.clone()
        elif way == "expanded" and tensor.ndim == 3 and len(tensor):
            tensor = tensor[:1].expand(tensor.shape)
        held = tensor.detach().resolve_neg()
        return tensor, _exactly((held.double() if kind.is_floating_point else held.to(torch.int64)).numpy())

    def _odd_points(self, place: tuple[int | None, int, int]) -> Any:
        layers, n, d = place
        X = self.random.normal(size=(n, d) if layers is None else (layers, n, d)).astype(np.float32)
        whole = torch.tensor(X)
        kind = self.one(ODD_KINDS)
        made = {
            "none": lambda: None,
            "text": lambda: "points",
            "texts": lambda: X.astype(str),
            "objects": lambda: X.astype(object),
            "structured": lambda: np.zeros(X.shape, dtype=[("x", "f4"), ("y", "f4")]),
            "masked": lambda: np.ma.masked_greater(X, 0),
            "torch masked": lambda: torch.masked.MaskedTensor(whole, whole > 0),
            "sparse": lambda: whole.to_sparse(),
            "csr": lambda: whole.reshape(-1, max(d, 1)).to_sparse_csr() if d else whole.to_sparse(),
            "meta": lambda: whole.to("meta"),
            "nested": lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)], layout=torch.jagged),
            "complex": lambda: torch.complex(whole, whole),
            "complex numpy": lambda: X + 1j,
            "float8": lambda: whole.to(torch.float8_e4m3fn),
            "quantised": lambda: torch.quantize_per_tensor(whole, 0.1, 0, torch.qint8),
            "dates": lambda: np.zeros(X.shape, dtype="M8[s]"),
            "ragged": lambda: [[1.0, 2.0], [3.0]],
            "bytes": lambda: b"1234",
            "scalar": lambda: 3.0,
            "tensors": lambda: [torch.zeros(2, requires_grad=True), torch.zeros(3)],
            "dict": lambda: {"X": X},
        }
        return made[kind]()

    # the other arguments

    def number(self, sound: Any) -> Drawn:
        """Draw a number: the sound one in some dress, or something odd."""
        if self.often(self.oddity):
            return Drawn(self.one(ODD_NUMBERS), False)
        return Drawn(self.one((int, int, np.int64, np.int32, np.uint8))(sound) if sound < 256 else sound, True)

    def seed(self) -> Drawn:
        if self.often(self.oddity):
            return Drawn(self.one((*ODD_NUMBERS, -1, 2**64)), False)
        return Drawn(self.one((0, 1, 7, 2**31, 2**32 - 1, np.uint64(3), np.int16(2))), True)

    def labels(self, n: int) -> Drawn:
        """Draw labels of one kind, some of which are none."""
        codes = self.random.integers(0, self.one((1, 2, 3, 8)), n)
        sound = {
            "numpy": lambda: codes,
            "torch": lambda: torch.from_numpy(codes),
            "list": lambda: codes.tolist(),
            "small": lambda: codes.astype(np.uint8),
            "large": lambda: codes.astype(np.uint64) + np.uint64(2**62),
            "negative": lambda: torch.from_numpy(-codes).int(),
            "float": lambda: codes.astype(np.float64),
            "bfloat16": lambda: torch.from_numpy(codes).bfloat16(),
            "bool": lambda: codes > 0,
        }
        texts = {
            "text": lambda: np.array([f"label {code}" for code in codes] or [], dtype="U9"),
            "text list": lambda: [f"label {code}" for code in codes] if n else np.array([], dtype="U1"),
            "objects": lambda: np.array([f"label {code}" for code in codes], dtype=object),
        }
        odd = {
            "none": lambda: None,
            "short": lambda: codes[1:],
            "flat": lambda: codes[:, None],
            "scalar": lambda: 3,
            "nan": lambda: np.where(codes == codes[:1].sum(), math.nan, codes),
            "complex": lambda: codes + 1j,
            "dates": lambda: codes.astype("M8[s]"),
            "mixed": lambda: np.array([None if code else "x" for code in codes], dtype=object),
            "structured": lambda: np.zeros(n, dtype=[("x", "f4")]),
            "masked": lambda: np.ma.masked_equal(codes, 1),
            "sparse": lambda: torch.from_numpy(codes).to_sparse(),
            "meta": lambda: torch.from_numpy(codes).to("meta"),
            "ragged": lambda: [[1], [1, 2]],
            "huge": lambda: np.full(n, 2**64 - 1, dtype=np.uint64),
        }
        if self.often(self.oddity):
            return Drawn(odd[self.one(list(odd))](), False)
        self.texts = self.often(0.2) if not hasattr(self, "texts") else self.texts
        chosen = texts if self.texts else sound
        return Drawn(chosen[self.one(list(chosen))](), True)

    # the verbs

    def _call(self, verb: str, fits: bool, **drawn: Drawn) -> Call:
        return Call(
            verb,
            {name: one.value for name, one in drawn.items()},
            fits and all(one.sound for one in drawn.values()),
            self.often(0.7),
            {name: one.exact for name, one in drawn.items() if one.exact is not None},
            self.tame_values,
        )

    def _nearest_neighbors(self, place: tuple[int | None, int, int]) -> Call:
        layers, n, d = place
        queries = self.points(place)
        tame = self.tame_values
        m = n if self.often(0.5) else int(self.random.integers(0, 61))
        wrong = self.often(self.oddity)
        bank = Drawn(queries.value, queries.sound, queries.exact) if self.often(0.3) else None
        if bank is None:
            bank = self.points((layers, m, d + 1 if wrong else d), alone=False)
        else:
            m, wrong = n, False
        self.tame_values &= tame
        own = m == n and self.often(0.4)
        most = m - own
        k = self.number(int(self.random.integers(1, most + 1)) if most > 0 else 1)
        exclude = Drawn(own if not self.often(self.oddity) else self.one((1, 0, None, "no", np.bool_(own))), True)
        sound = not wrong and most > 0 and exclude.value is own
        return self._call("nearest_neighbors", sound, queries=queries, bank=bank, n_neighbors=k, exclude_self=exclude)

    def _kmeans(self, place: tuple[int | None, int, int]) -> Call:
        layers, n, d = place
        X = self.points(place)
        tame = self.tame_values
        k = int(self.random.integers(1, min(n, 9) + 1)) if n else 1
        drawn = {"X": X, "n_clusters": self.number(k), "n_init": self.number(int(self.random.integers(1, 4)))}
        drawn["seed"] = self.seed()
        sound = n > 0
        if self.often(0.3):
            init = self.points((self.one((None, layers)), k, d), alone=False)
            # how far a start may lie depends on the points
            drawn["init"], sound = init, False
        self.tame_values = tame
        return self._call("kmeans", sound, **drawn)

    def _tsne(self, place: tuple[int | None, int, int]) -> Call:
        layers, n, _ = place
        X = self.points(place)
        tame = self.tame_values
        drawn = {"X": X, "n_iter": self.number(int(self.random.integers(0, 31))), "seed": self.seed()}
        drawn["perplexity"] = self._perplexity()
        sound = n >= 2
        if self.often(0.3):
            # how far a start may lie has a bound of its own
            drawn["init"], sound = self.points((self.one((None, layers)), n, 2), alone=False), False
        self.tame_values = tame
        return self._call("tsne", sound, **drawn)

    def _perplexity(self) -> Drawn:
        if self.often(self.oddity):
            return Drawn(self.one((*ODD_NUMBERS, 0, -1.0, 5e-324, 1e300, 10**400, np.float16(3))), False)
        return Drawn(self.one((30.0, 30, 5.0, 1.0, 2.5, np.float32(3), np.int64(4), 0.5)), True)

    def _score_clusters(self, place: tuple[int | None, int, int]) -> Call:
        layers, n, d = place
        X, labels = self.points(place), self.labels(n)
        tame = self.tame_values
        drawn = {"X": X, "labels_true": labels, "n_init": self.number(1), "n_nulls": self.number(2)}
        sound, side = n > 0, "bank_"
        drawn["seed"] = self.seed()
        spaces = [("hidden",), ("hidden",), ["hidden"], ("map",), ("hidden", "map")]
        drawn["spaces"] = Drawn(self.one(spaces), True)
        if self.often(self.oddity):
            drawn["spaces"] = Drawn(self.one(("hidden", None, ("mop",), (None,), 3, (("hidden",),))), False)
        more = [name for name in ("blocks", "groups", "instances") if self.often(0.25)]
        drawn |= {name: self.labels(n) for name in more}
        if self.often(0.3):
            m = int(self.random.integers(1, 40))
            wrong = self.often(self.oddity)
            drawn["bank"] = self.points((layers, m, d + 1 if wrong else d), alone=False)
            drawn["bank_labels"] = self.labels(m)
            if not self.often(self.oddity):
                drawn |= {side + name: self.labels(m) for name in more}
            elif more:
                sound = False
            sound &= not wrong
        elif self.often(self.oddity):
            drawn["bank_labels"], sound = labels, False
        if self.often(0.3):
            drawn["n_clusters"] = self.number(int(self.random.integers(1, n + 1)) if n else 1)
        if self.often(0.5):
            drawn["n_neighbors"] = self.number(int(self.random.integers(1, 9)))
        drawn["perplexity"] = self._perplexity()
        self.tame_values = tame
        call = self._call("score_clusters", sound, **drawn)
        # its map takes 500 iterations, of which torch code makes a few in the time of a call
        call.native = call.native or ("map" in _listed(call.args["spaces"]) and self.often(0.9))
        return call


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _exactly(array: np.ndarray) -> np.ndarray | None:
    """Give numbers in float64, None where it cannot hold one of them."""
    if array.dtype.kind in "iu" and array.size and max(abs(int(array.min())), abs(int(array.max()))) > 2**53:
        return None
    with np.errstate(over="ignore"):
        return array.astype(np.float64)
