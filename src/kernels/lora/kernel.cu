// lora_down_rows: s = x A^T for at most 8 rows of x, with x = rms_norm(z) computed on the way where a norm is given.
//
// One block of 512 threads per row of the A (or one block where there is none and only the norm is wanted). Each block
// normalises all of x for itself, which is cheaper than to wait for another kernel; block 0 writes it down. What
// a thread needs of x, A and the norm's weight it asks for at once. Arithmetic as in rms_norm/kernel.cu, the
// normalised values rounded to T before the product.
#include "../cuda/common.cuh"

#define DOWN_RUNS 3
#define DOWN_THREADS 512

// Consecutive rows of A whose columns in s follow one another.
struct DownRun {
    const void* a;
    i64 s_start, rank;
};

struct DownArgs {
    const void* x;
    i64 rows, depth;
    const float* norm; // null: x as it is
    float eps, unused;
    void* normed;
    void* s;
    i64 s_cols, run_count;
    DownRun runs[DOWN_RUNS];
};

template <class T> __device__ __forceinline__ void lora_down_rows(const DownArgs& args) {
    constexpr int N = Pack<T>::N, HELD = 4, STRIDE = DOWN_THREADS * N;
    const i64 depth = args.depth;
    const T* a = nullptr;
    i64 column = 0, index = blockIdx.x;
#pragma unroll
    for (int r = 0; r < DOWN_RUNS; ++r) {
        if (r >= args.run_count || a != nullptr) break;
        const DownRun& run = args.runs[r];
        if (index < run.rank) {
            a = (const T*)run.a + index * depth;
            column = run.s_start + index;
        } else {
            index -= run.rank;
        }
    }
    const bool has_norm = args.norm != nullptr, is_writer = has_norm && blockIdx.x == 0;
    const bool packed = is_packed<T>(depth) && ((i64)a & 15) == 0;
    const i64 start = (i64)threadIdx.x * N;
    allow_next();
    wait_for_previous();
    Pack<T> held[HELD];
    float weights[HELD][N];
    if (packed) {
#pragma unroll
        for (int h = 0; h < HELD; ++h) {
            const i64 i = start + h * STRIDE;
            if (i >= depth) break;
            if (a != nullptr) held[h] = Pack<T>::load(a + i);
#pragma unroll
            for (int n = 0; n < N; n += 4) {
                if (!has_norm) break;
                const float4 four = *reinterpret_cast<const float4*>(args.norm + i + n);
                weights[h][n] = four.x;
                weights[h][n + 1] = four.y;
                weights[h][n + 2] = four.z;
                weights[h][n + 3] = four.w;
            }
        }
    }
    for (i64 row = 0; row < args.rows; ++row) {
        const T* x = (const T*)args.x + row * depth;
        T* normed = (T*)args.normed + row * depth;
        Pack<T> own[HELD];
        float squares = 0.0f, rstd = 1.0f, dot = 0.0f;
        if (packed) {
#pragma unroll
            for (int h = 0; h < HELD; ++h) {
                if (start + h * STRIDE < depth) own[h] = Pack<T>::load(x + start + h * STRIDE);
            }
        }
        if (has_norm) {
            if (packed) {
#pragma unroll
                for (int h = 0; h < HELD; ++h) {
                    if (start + h * STRIDE >= depth) break;
#pragma unroll
                    for (int n = 0; n < N; ++n) squares += wide(own[h].value[n]) * wide(own[h].value[n]);
                }
                for (i64 i = start + HELD * STRIDE; i < depth; i += STRIDE) {
                    const Pack<T> pack = Pack<T>::load(x + i);
#pragma unroll
                    for (int n = 0; n < N; ++n) squares += wide(pack.value[n]) * wide(pack.value[n]);
                }
            } else {
                for (i64 i = threadIdx.x; i < depth; i += DOWN_THREADS) squares += wide(x[i]) * wide(x[i]);
            }
            rstd = 1.0f / sqrtf(block_sum(squares) / (float)depth + args.eps);
        }
        if (packed) {
#pragma unroll
            for (int h = 0; h < HELD; ++h) {
                if (start + h * STRIDE >= depth) break;
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    if (has_norm) own[h].value[n] = narrow<T>(wide(own[h].value[n]) * rstd * weights[h][n]);
                    if (a != nullptr) dot += wide(own[h].value[n]) * wide(held[h].value[n]);
                }
                if (is_writer) own[h].store(normed + start + h * STRIDE);
            }
            for (i64 i = start + HELD * STRIDE; i < depth; i += STRIDE) {
                Pack<T> pack = Pack<T>::load(x + i), other = pack;
                if (a != nullptr) other = Pack<T>::load(a + i);
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    if (has_norm) pack.value[n] = narrow<T>(wide(pack.value[n]) * rstd * args.norm[i + n]);
                    dot += wide(pack.value[n]) * wide(other.value[n]);
                }
                if (is_writer) pack.store(normed + i);
            }
        } else {
            for (i64 i = threadIdx.x; i < depth; i += DOWN_THREADS) {
                T value = x[i];
                if (has_norm) value = narrow<T>(wide(value) * rstd * args.norm[i]);
                if (is_writer) normed[i] = value;
                if (a != nullptr) dot += wide(value) * wide(a[i]);
            }
        }
        if (a != nullptr) {
            dot = block_sum(dot);
            if (threadIdx.x == 0) ((T*)args.s)[row * args.s_cols + column] = narrow<T>(dot);
        }
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(DOWN_THREADS) lora_down_rows_##name(                         \
        const __grid_constant__ DownArgs args) {                                                              \
        lora_down_rows<T>(args);                                                                              \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
