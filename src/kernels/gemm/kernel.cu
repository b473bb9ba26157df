// gemm: out = alpha * left * right [+ start] where cuBLASLt has no algorithm for shape, strides or alignment.
//
// A block of 16 x 16 threads computes as many elements, 16 of the depth at a time through shared memory; sums in f32 over
// ascending depth. left[i, k] lies at i * left_row + k * left_depth, right[k, j] at k * right_depth + j * right_column.
// `start` may be `out`: each thread reads its element before it writes it. gemm_plain writes the operands' dtype,
// gemm_plain_full f32.
#include "../cuda/common.cuh"

#define SIDE 16

template <class T, class O>
__device__ __forceinline__ void gemm_plain_tile(
    const T* left, i64 left_row, i64 left_depth, const T* right, i64 right_depth, i64 right_column, i64 rows, i64 cols,
    i64 depth, float alpha, const O* start, i64 start_row, O* out, i64 out_row) {
    __shared__ float a[SIDE][SIDE + 1], b[SIDE][SIDE + 1];
    const i64 across = (cols + SIDE - 1) / SIDE;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const i64 row = blockIdx.x / across * SIDE + y, column = blockIdx.x % across * SIDE + x;
    float sum = 0.0f;
    for (i64 first = 0; first < depth; first += SIDE) {
        a[y][x] = row < rows && first + x < depth ? wide(left[row * left_row + (first + x) * left_depth]) : 0.0f;
        b[y][x] = column < cols && first + y < depth ? wide(right[(first + y) * right_depth + column * right_column]) : 0.0f;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < SIDE; ++k) sum += a[y][k] * b[k][x];
        __syncthreads();
    }
    if (row < rows && column < cols) {
        sum *= alpha;
        if (start != nullptr) sum += wide(start[row * start_row + column]);
        out[row * out_row + column] = narrow<O>(sum);
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) gemm_plain_##name(                                      \
        const T* left, i64 left_row, i64 left_depth, const T* right, i64 right_depth, i64 right_column,       \
        i64 rows, i64 cols, i64 depth, float alpha, const T* start, i64 start_row, T* out, i64 out_row) {     \
        gemm_plain_tile<T, T>(                                                                                \
            left, left_row, left_depth, right, right_depth, right_column, rows, cols, depth, alpha, start,    \
            start_row, out, out_row);                                                                         \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) gemm_plain_full_##name(                                 \
        const T* left, i64 left_row, i64 left_depth, const T* right, i64 right_depth, i64 right_column,       \
        i64 rows, i64 cols, i64 depth, float alpha, const float* start, i64 start_row, float* out,            \
        i64 out_row) {                                                                                        \
        gemm_plain_tile<T, float>(                                                                            \
            left, left_row, left_depth, right, right_depth, right_column, rows, cols, depth, alpha, start,    \
            start_row, out, out_row);                                                                         \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
