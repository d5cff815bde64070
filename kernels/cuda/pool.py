"""Pooling: `src/pool.cu`."""

from tinyres.kernels.arrays import Array, Pair, ceil_div, name_of, output_size
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import launch
from tinyres.kernels.cuda.common import BLOCK, address, as_seen, blocks, c_type, empty, in_memory

Shape = tuple[int, ...]
TILE = 32  # columns of a block of the global mean, at most
PLACES = {"uint8": "uint8_t", "int32": "int", "int64": "long long"}


def max_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    geometry = _geometry(x.shape, kernel, stride, padding)
    x = in_memory(x)
    y = empty(x, (len(x), *geometry[2:4], x.shape[-1]))
    index = empty(x, y.shape, "uint8" if kernel[0] * kernel[1] <= 256 else "int32")
    _map("max_pool2d", (x, y, index), y, geometry, PLACES[index.dtype.name])
    return as_seen(y), as_seen(index)


def max_pool2d_backward(dy: Array, index: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    if name_of(index.dtype) not in PLACES:
        raise Unsupported(f"places of dtype {index.dtype}")
    dx = new_maps(dy, x_shape)
    operands = (in_memory(dy), in_memory(index), dx)
    _map("max_pool2d_backward", operands, dx, _geometry(x_shape, kernel, stride, padding), PLACES[index.dtype.name])
    return as_seen(dx)


def avg_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    geometry = _geometry(x.shape, kernel, stride, padding)
    x = in_memory(x)
    y = empty(x, (len(x), *geometry[2:4], x.shape[-1]))
    _map("avg_pool2d", (x, y), y, geometry)
    return as_seen(y)


def avg_pool2d_backward(dy: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    dx = new_maps(dy, x_shape)
    _map("avg_pool2d_backward", (in_memory(dy), dx), dx, _geometry(x_shape, kernel, stride, padding))
    return as_seen(dx)


def global_avg_pool2d(x: Array) -> Array:
    n, c, h, w = x.shape
    x = in_memory(x)
    y = empty(x, (n, c))
    width = width_of((x, y), c)
    columns, macros = c // width, {"REAL": c_type(x), "WIDTH": width, "PLACE": "uint8_t"}
    if y.size:
        tiles = ceil_div(columns, TILE)
        wide = ceil_div(columns, tiles)
        block = (wide, max(1, min(BLOCK // wide, h * w)))
        shared = block[0] * block[1] * width * (8 if x.dtype.name == "float64" else 4)
        launch.kernel("pool", "global_avg_pool2d", **macros)((n, tiles), block, x, y, h * w, columns, shared=shared)
    return y


def global_avg_pool2d_backward(dy: Array, x_shape: Shape) -> Array:
    dx, dy = new_maps(dy, x_shape), in_memory(dy)
    width = width_of((dy, dx), x_shape[1])
    _launch("global_avg_pool2d_backward", (dy, dx), dx, width, (x_shape[2] * x_shape[3], x_shape[1] // width))
    return as_seen(dx)


def new_maps(like: Array, shape: Shape) -> Array:
    """An undefined (N, H, W, C) array for maps of an (N, C, H, W) shape."""
    n, c, h, w = shape
    return empty(like, (n, h, w, c))


def _geometry(x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> tuple[int, ...]:
    """x's map, y's map, kernel, stride, padding."""
    out = (output_size(x_shape[i + 2], kernel[i], stride[i], padding[i]) for i in (0, 1))
    return (*x_shape[2:], *out, *kernel, *stride, *padding)


def width_of(arrays: tuple[Array, ...], *channels: int) -> int:
    """How many channels a thread reads at once: 16 bytes of them where all of ``channels`` are whole packs."""
    pack = 16 // arrays[0].itemsize
    aligned = not any(address(a) % 16 for a in arrays)
    return pack if aligned and not any(c % pack for c in channels) else 1


def _map(name: str, operands: tuple[Array, ...], out: Array, geometry: tuple[int, ...], place: str = "uint8_t") -> None:
    """Runs a kernel of windows over the elements of ``out``."""
    width = width_of(operands, out.shape[-1])
    _launch(name, operands, out, width, (*geometry[:2], out.shape[-1] // width, *geometry[2:]), place)


def _launch(
    name: str, operands: tuple[Array, ...], out: Array, width: int, sizes: tuple[int, ...], place: str = "uint8_t"
) -> None:
    macros, groups = {"REAL": c_type(operands[0], out), "WIDTH": width, "PLACE": place}, out.size // width
    if groups:
        launch.kernel("pool", name, **macros)(blocks(groups, BLOCK), BLOCK, *operands, groups, *sizes)
