// attention for every head_dim up to 256 and every dtype: the plain kernels. Those for head_dim 64 and 128 in 16 bits are
// in mma.cu.
//
// Forward: a block of W warps takes one query and one head; a warp takes 32 keys at a time, one per lane for the scores,
// then all lanes together for p * v with lane l holding columns l, l + 32, ... Warps are combined at the end (W is 1 in
// training, more when decoding, where there is one query only).
// Backward, deterministic, no atomics: attention_delta computes D = sum(do * o); attention_backward_q one warp per query
// and head; attention_backward_kv one warp per key and key head, over the group's query heads in ascending order.
// starts[t] and ends[t] are the first row of row t's text and the one after its last; window 0 is none.
#include "../cuda/common.cuh"

#define MOST_DIM 256
#define LANE_COLUMNS (MOST_DIM / 32)
#define MOST_WARPS 8

template <class T> __device__ __forceinline__ float attention_dot(const float* a, const T* b, int dim) {
    constexpr int N = Pack<T>::N;
    float sum = 0.0f;
    if (dim % N == 0 && ((i64)b & 15) == 0) {
        for (int d = 0; d < dim; d += N) {
            Pack<T> pack = Pack<T>::load(b + d);
#pragma unroll
            for (int n = 0; n < N; ++n) sum += a[d + n] * wide(pack.value[n]);
        }
    } else {
        for (int d = 0; d < dim; ++d) sum += a[d] * wide(b[d]);
    }
    return sum;
}

// One query over the keys begin..end, whose rows are `stride` apart. Returns lse in every thread.
template <class T>
__device__ __forceinline__ float attention_attend(
    const T* q, const T* keys, const T* values, i64 stride, i64 begin, i64 end, int dim, float scale, T* o) {
    __shared__ float query[MOST_DIM];
    __shared__ float sums[MOST_WARPS][MOST_DIM];
    __shared__ float maxima[MOST_WARPS], totals[MOST_WARPS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    for (int d = threadIdx.x; d < dim; d += blockDim.x) query[d] = wide(q[d]) * scale;
    __syncthreads();
    float highest = -INFINITY_F, total = 0.0f, own[LANE_COLUMNS];
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) own[c] = 0.0f;
    for (i64 base = begin + 32 * warp; base < end; base += 32 * warps) {
        const int count = (int)(end - base < 32 ? end - base : 32);
        float score = -INFINITY_F;
        if (lane < count) score = attention_dot(query, keys + (base + lane) * stride, dim);
        const float new_highest = fmaxf(highest, warp_max(score));
        const float p = lane < count ? expf(score - new_highest) : 0.0f;
        const float keep = expf(highest - new_highest);
        total = total * keep + warp_sum(p);
        highest = new_highest;
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; ++c) own[c] *= keep;
        for (int j = 0; j < count; ++j) {
            const float weight = __shfl_sync(0xffffffffu, p, j);
            const T* value = values + (base + j) * stride;
#pragma unroll
            for (int c = 0; c < LANE_COLUMNS; ++c) {
                if (lane + 32 * c < dim) own[c] += weight * wide(value[lane + 32 * c]);
            }
        }
    }
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) {
        if (lane + 32 * c < dim) sums[warp][lane + 32 * c] = own[c];
    }
    if (lane == 0) {
        maxima[warp] = highest;
        totals[warp] = total;
    }
    __syncthreads();
    float all_highest = maxima[0], all_total = 0.0f;
    for (int w = 1; w < warps; ++w) all_highest = fmaxf(all_highest, maxima[w]);
    // a warp that saw no key has maximum -inf and counts for exp(-inf) = 0
    for (int w = 0; w < warps; ++w) all_total += totals[w] * expf(maxima[w] - all_highest);
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
        float sum = 0.0f;
        for (int w = 0; w < warps; ++w) sum += sums[w][d] * expf(maxima[w] - all_highest);
        o[d] = narrow<T>(sum / all_total);
    }
    return all_highest + logf(all_total);
}

template <class T>
__device__ __forceinline__ void attention_forward_row(
    const T* qkv, const int* starts, i64 rows, int heads, int kv_heads, int dim, i64 window, T* o, float* lse) {
    const i64 row = blockIdx.x / heads;
    const int head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
    const i64 width = (i64)(heads + 2 * kv_heads) * dim;
    i64 begin = starts[row];
    if (window > 0 && row + 1 - window > begin) begin = row + 1 - window;
    const T* keys = qkv + (i64)(heads + kv_head) * dim;
    const T* values = qkv + (i64)(heads + kv_heads + kv_head) * dim;
    const float scale = rsqrtf((float)dim);
    const float row_lse = attention_attend(
        qkv + row * width + (i64)head * dim, keys, values, width, begin, row + 1, dim, scale,
        o + (row * heads + head) * dim);
    if (threadIdx.x == 0) lse[(i64)head * rows + row] = row_lse;
}

// New rows of qkv over `cached` earlier rows and themselves; keys and values (cached + rows, kv_heads * dim).
template <class T>
__device__ __forceinline__ void attention_cached_row(
    const T* qkv, const T* keys, const T* values, i64 cached, int heads, int kv_heads, int dim, i64 window, T* o) {
    const i64 row = blockIdx.x / heads;
    const int head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
    const i64 width = (i64)(heads + 2 * kv_heads) * dim, end = cached + row + 1;
    const i64 begin = window > 0 && end > window ? end - window : 0;
    attention_attend(
        qkv + row * width + (i64)head * dim, keys + (i64)kv_head * dim, values + (i64)kv_head * dim,
        (i64)kv_heads * dim, begin, end, dim, rsqrtf((float)dim), o + (row * heads + head) * dim);
}

// Appends the k and v columns of qkv's rows to the caches.
template <class T>
__device__ __forceinline__ void attention_append_rows(
    const T* qkv, i64 rows, i64 cached, i64 q_width, i64 kv_width, T* keys, T* values) {
    for (i64 i = thread_index(); i < rows * kv_width; i += thread_count()) {
        const T* from = qkv + i / kv_width * (q_width + 2 * kv_width) + q_width + i % kv_width;
        keys[cached * kv_width + i] = from[0];
        values[cached * kv_width + i] = from[kv_width];
    }
}

// One warp per row and head.
template <class T>
__device__ __forceinline__ void attention_delta_rows(
    const T* do_, const T* o, i64 rows, int heads, int dim, float* delta) {
    const i64 warp = thread_index() / 32, lane = threadIdx.x & 31;
    if (warp >= rows * heads) return;
    float sum = 0.0f;
    for (i64 d = lane; d < dim; d += 32) sum += wide(do_[warp * dim + d]) * wide(o[warp * dim + d]);
    sum = warp_sum(sum);
    if (lane == 0) delta[warp % heads * rows + warp / heads] = sum;
}

template <class T>
__device__ __forceinline__ void attention_backward_q_row(
    const T* do_, const T* qkv, const float* lse, const float* delta, const int* starts, i64 rows, int heads,
    int kv_heads, int dim, i64 window, T* dqkv) {
    __shared__ float query[MOST_DIM], gradient[MOST_DIM];
    const i64 row = blockIdx.x / heads;
    const int head = blockIdx.x % heads, kv_head = head / (heads / kv_heads), lane = threadIdx.x;
    const i64 width = (i64)(heads + 2 * kv_heads) * dim;
    const float scale = rsqrtf((float)dim);
    for (int d = lane; d < dim; d += 32) {
        query[d] = wide(qkv[row * width + (i64)head * dim + d]) * scale;
        gradient[d] = wide(do_[(row * heads + head) * dim + d]);
    }
    __syncwarp();
    const T* keys = qkv + (i64)(heads + kv_head) * dim;
    const T* values = qkv + (i64)(heads + kv_heads + kv_head) * dim;
    const float row_lse = lse[(i64)head * rows + row], row_delta = delta[(i64)head * rows + row];
    i64 begin = starts[row];
    if (window > 0 && row + 1 - window > begin) begin = row + 1 - window;
    float own[LANE_COLUMNS];
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) own[c] = 0.0f;
    for (i64 base = begin; base <= row; base += 32) {
        const int count = (int)(row + 1 - base < 32 ? row + 1 - base : 32);
        float ds = 0.0f;
        if (lane < count) {
            const float p = expf(attention_dot(query, keys + (base + lane) * width, dim) - row_lse);
            ds = p * (attention_dot(gradient, values + (base + lane) * width, dim) - row_delta);
        }
        for (int j = 0; j < count; ++j) {
            const float weight = __shfl_sync(0xffffffffu, ds, j);
            const T* key = keys + (base + j) * width;
#pragma unroll
            for (int c = 0; c < LANE_COLUMNS; ++c) {
                if (lane + 32 * c < dim) own[c] += weight * wide(key[lane + 32 * c]);
            }
        }
    }
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) {
        const int d = lane + 32 * c;
        if (d < dim) dqkv[row * width + (i64)head * dim + d] = narrow<T>(own[c] * scale);
    }
}

template <class T>
__device__ __forceinline__ void attention_backward_kv_row(
    const T* do_, const T* qkv, const float* lse, const float* delta, const int* ends, i64 rows, int heads,
    int kv_heads, int dim, i64 window, T* dqkv) {
    __shared__ float key[MOST_DIM], value[MOST_DIM];
    const i64 row = blockIdx.x / kv_heads;
    const int kv_head = blockIdx.x % kv_heads, group = heads / kv_heads, lane = threadIdx.x;
    const i64 width = (i64)(heads + 2 * kv_heads) * dim;
    const float scale = rsqrtf((float)dim);
    const i64 k_column = (i64)(heads + kv_head) * dim, v_column = (i64)(heads + kv_heads + kv_head) * dim;
    for (int d = lane; d < dim; d += 32) {
        key[d] = wide(qkv[row * width + k_column + d]) * scale;
        value[d] = wide(qkv[row * width + v_column + d]);
    }
    __syncwarp();
    i64 end = ends[row];
    if (window > 0 && row + window < end) end = row + window;
    float dk[LANE_COLUMNS], dv[LANE_COLUMNS];
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) dk[c] = dv[c] = 0.0f;
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const T* queries = qkv + (i64)head * dim;
        const T* gradients = do_ + (i64)head * dim;
        for (i64 base = row; base < end; base += 32) {
            const int count = (int)(end - base < 32 ? end - base : 32);
            float p = 0.0f, ds = 0.0f;
            if (lane < count) {
                const i64 i = base + lane;
                p = expf(attention_dot(key, queries + i * width, dim) - lse[(i64)head * rows + i]);
                const float dp = attention_dot(value, gradients + i * heads * dim, dim);
                ds = p * (dp - delta[(i64)head * rows + i]);
            }
            for (int j = 0; j < count; ++j) {
                const float p_j = __shfl_sync(0xffffffffu, p, j), ds_j = __shfl_sync(0xffffffffu, ds, j);
                const T* query = queries + (base + j) * width;
                const T* gradient = gradients + (base + j) * heads * dim;
#pragma unroll
                for (int c = 0; c < LANE_COLUMNS; ++c) {
                    const int d = lane + 32 * c;
                    if (d < dim) {
                        dv[c] += p_j * wide(gradient[d]);
                        dk[c] += ds_j * wide(query[d]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) {
        const int d = lane + 32 * c;
        if (d < dim) {
            dqkv[row * width + k_column + d] = narrow<T>(dk[c] * scale);
            dqkv[row * width + v_column + d] = narrow<T>(dv[c]);
        }
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(32) attention_forward_##name(                                \
        const T* qkv, const int* starts, i64 rows, i64 heads, i64 kv_heads, i64 dim, i64 window, T* o,        \
        float* lse) {                                                                                         \
        attention_forward_row<T>(qkv, starts, rows, (int)heads, (int)kv_heads, (int)dim, window, o, lse);     \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) attention_cached_##name(                                \
        const T* qkv, const T* keys, const T* values, i64 cached, i64 heads, i64 kv_heads, i64 dim,           \
        i64 window, T* o) {                                                                                   \
        attention_cached_row<T>(                                                                              \
            qkv, keys, values, cached, (int)heads, (int)kv_heads, (int)dim, window, o);                       \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) attention_append_##name(                                \
        const T* qkv, i64 rows, i64 cached, i64 q_width, i64 kv_width, T* keys, T* values) {                  \
        attention_append_rows<T>(qkv, rows, cached, q_width, kv_width, keys, values);                         \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) attention_delta_##name(                                 \
        const T* do_, const T* o, i64 rows, i64 heads, i64 dim, float* delta) {                               \
        attention_delta_rows<T>(do_, o, rows, (int)heads, (int)dim, delta);                                   \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(32) attention_backward_q_##name(                             \
        const T* do_, const T* qkv, const float* lse, const float* delta, const int* starts, i64 rows,        \
        i64 heads, i64 kv_heads, i64 dim, i64 window, T* dqkv) {                                              \
        attention_backward_q_row<T>(                                                                          \
            do_, qkv, lse, delta, starts, rows, (int)heads, (int)kv_heads, (int)dim, window, dqkv);           \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(32) attention_backward_kv_##name(                            \
        const T* do_, const T* qkv, const float* lse, const float* delta, const int* ends, i64 rows,          \
        i64 heads, i64 kv_heads, i64 dim, i64 window, T* dqkv) {                                              \
        attention_backward_kv_row<T>(                                                                         \
            do_, qkv, lse, delta, ends, rows, (int)heads, (int)kv_heads, (int)dim, window, dqkv);             \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
