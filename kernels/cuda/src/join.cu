// Where a residual block ends, and the shortcut that has no parameters.
//
// The join with the batch norm before it, z = relu(bn(x) + residual), is a part of the passes of norm.cu: there it costs the
// bytes of the residual, and nothing else.
//
// Macros: WIDTH as in columns.cuh
#include "map.cuh"
#include "columns.cuh"

struct AddRelu { __device__ ACC operator()(ACC x, ACC y) const { return relu_of(x + y); } };

// The join that ends a residual block. As two kernels, x + y and then relu, 5 n elements cross the bus; here 3 n.
extern "C" __global__ void add_relu(
    const REAL* __restrict__ x, const REAL* __restrict__ y, REAL* __restrict__ z, INDEX n, INDEX packs) {
    map(AddRelu(), x, y, z, n, packs);
}

// y[n, i, j] = x[n, i * stride, j * stride], between zeros: x's channels stand in y from column ``before`` on.
extern "C" __global__ void subsample_pad(
    const REAL* __restrict__ x, REAL* __restrict__ y, INDEX n, int h, int w, int columns, int oh, int ow, int out_columns,
    int before, int stride) {
    for (INDEX i = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += INDEX(gridDim.x) * blockDim.x) {
        const Spot spot(i, oh, ow, out_columns);
        const int column = spot.column - before;
        Values values;
        if (column >= 0 && column < columns)
            values = read(x, index_of(spot.n, spot.row * stride, spot.pixel * stride, column, h, w, columns));
        else
            for (int k = 0; k < WIDTH; k++) narrow(values.v[k], ACC(0));
        write(y, i, values);
    }
}

extern "C" __global__ void subsample_pad_backward(
    const REAL* __restrict__ dy, REAL* __restrict__ dx, INDEX n, int h, int w, int columns, int oh, int ow, int out_columns,
    int before, int stride) {
    for (INDEX i = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += INDEX(gridDim.x) * blockDim.x) {
        const Spot spot(i, h, w, columns);
        Values values;
        if (spot.row % stride == 0 && spot.pixel % stride == 0)
            values = read(
                dy, index_of(spot.n, spot.row / stride, spot.pixel / stride, spot.column + before, oh, ow, out_columns));
        else
            for (int k = 0; k < WIDTH; k++) narrow(values.v[k], ACC(0));
        write(dx, i, values);
    }
}
