// Tiles of 16-bit rows in shared memory, and products of a warp's 16 rows with them.
//
// A row of D values is D / 8 chunks of 16 bytes; chunk c of row r lies at c ^ (r % 8), so that the eight rows of a matrix
// load and the eight lanes of a copy meet different banks.
#pragma once
#include "../cuda/primitives.cuh"

#if __CUDA_ARCH__ >= 800

#define LOG2_E 1.4426950408889634f

template <int D> __device__ __forceinline__ u32 tile_at(u32 tile, int row, int chunk) {
    return tile + (u32)((row * (D / 8) + (chunk ^ (row & 7))) * 16);
}

// Starts the copy of `ROWS` rows; those from `valid` on become zero.
template <int ROWS, int D, int THREADS, class T>
__device__ __forceinline__ void tile_load(u32 tile, const T* from, i64 stride, int valid) {
    constexpr int CHUNKS = D / 8;
    static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as many chunks");
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
        const int index = i * THREADS + threadIdx.x, row = index / CHUNKS, chunk = index % CHUNKS;
        const bool is_there = row < valid;
        copy_async(tile_at<D>(tile, row, chunk), from + (is_there ? row : 0) * stride + chunk * 8, is_there ? 16 : 0);
    }
}

// The A operand: rows first .. first + 16, columns 16 * step ..
template <int D> __device__ __forceinline__ void tile_rows(u32 (&a)[4], u32 tile, int first, int step) {
    const int lane = threadIdx.x & 31;
    load_matrices(a, tile_at<D>(tile, first + (lane & 15), 2 * step + (lane >> 4)));
}

// The B operand of a product over the columns, for rows first .. first + 16 as its n: (b0, b1) of the first 8, of the rest.
template <int D> __device__ __forceinline__ void tile_columns_of_rows(u32 (&b)[4], u32 tile, int first, int step) {
    const int lane = threadIdx.x & 31;
    load_matrices(b, tile_at<D>(tile, first + (lane & 7) + (lane >> 4) * 8, 2 * step + ((lane >> 3) & 1)));
}

// The B operand of a product over rows first .. first + 16, for columns 16 * step .. as its n.
template <int D> __device__ __forceinline__ void tile_rows_as_depth(u32 (&b)[4], u32 tile, int first, int step) {
    const int lane = threadIdx.x & 31;
    load_matrices_transposed(b, tile_at<D>(tile, first + (lane & 15), 2 * step + (lane >> 4)));
}

// c (16 x N) = rows of `left` from `first` on, times the N rows of `right` transposed.
template <class T, int D, int N>
__device__ __forceinline__ void tile_product(float (&c)[N / 8][4], u32 left, int first, u32 right) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
        u32 a[4];
        tile_rows<D>(a, left, first, step);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            u32 b[4];
            tile_columns_of_rows<D>(b, right, 16 * n, step);
            mma<T>(c[2 * n], a, b[0], b[1]);
            mma<T>(c[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// sum (16 x D) += p (16 x N, as a product left it) times the N rows of `right`.
template <class T, int D, int N>
__device__ __forceinline__ void tile_accumulate(float (&sum)[D / 8][4], const float (&p)[N / 8][4], u32 right) {
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
        const u32 a[4] = {
            pair<T>(p[2 * k][0], p[2 * k][1]), pair<T>(p[2 * k][2], p[2 * k][3]),
            pair<T>(p[2 * k + 1][0], p[2 * k + 1][1]), pair<T>(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
            u32 b[4];
            tile_rows_as_depth<D>(b, right, 16 * k, d);
            mma<T>(sum[2 * d], a, b[0], b[1]);
            mma<T>(sum[2 * d + 1], a, b[2], b[3]);
        }
    }
}

// Writes the 16 x D sums of a warp, times a factor per row, to rows of `to` that lie below `valid`.
template <class T, int D>
__device__ __forceinline__ void tile_store(
    const float (&sum)[D / 8][4], float upper, float lower, T* to, i64 stride, int first, int valid) {
    const int lane = threadIdx.x & 31, row = first + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        if (row < valid) {
            *reinterpret_cast<u32*>(to + row * stride + 8 * n + column) = pair<T>(sum[n][0] * upper, sum[n][1] * upper);
        }
        if (row + 8 < valid) {
            *reinterpret_cast<u32*>(to + (row + 8) * stride + 8 * n + column) =
                pair<T>(sum[n][2] * lower, sum[n][3] * lower);
        }
    }
}

#endif
