// sum_squares: the f64 sum of squares of each run of 65536 f32 values; the host adds the runs in order.
//
// One block of 256 threads per run, so the order of additions depends on nothing but the length.
#include "../cuda/common.cuh"

#define RUN 65536

extern "C" __global__ void __launch_bounds__(256) sum_squares_f32(const float* x, i64 len, double* sums) {
    const i64 first = (i64)blockIdx.x * RUN;
    const i64 end = first + RUN < len ? first + RUN : len;
    double sum = 0.0;
    for (i64 i = first + threadIdx.x; i < end; i += blockDim.x) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
