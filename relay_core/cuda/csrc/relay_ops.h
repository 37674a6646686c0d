/* The plain C interface of both libraries (CUDA: librelay_cuda.so, host: librelay_host.so).
 *
 * dtype: 0 float32, 1 float16, 2 bfloat16, 3 float64. "compute" tensors are float64 for float64, else float32.
 * Every function returns 0, -1 for arguments that it does not serve, or a CUDA error. The host library ignores `stream`.
 */
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#define RELAY_OPS_VERSION 1
#pragma GCC visibility push(default)

int relay_ops_version(void);
/* Number of devices, or minus the CUDA error (35: no driver); 0 from the host library. */
int relay_devices(void);
const char* relay_error(int status);

/* out = bias_act(x + b) or, for order 1 and 2, g times its derivative at x. b (size,) of x's dtype or null, element i has
 * bias (i / inner) % size. numbers: slope, gain, clamp (infinity for none). Tensors are dense, of one memory layout. */
int relay_bias_act(void* out, const void* x, const void* b, const void* g, int dtype, int64_t count, int64_t inner,
                   int64_t size, int act, int order, int from_output, const double* numbers, void* stream);

/* Planes (n, c) of `pixels`, contiguous or (`last`) channels-last; scale (planes,), strength (1,), bias (channels,) are compute tensors or null; noise is
 * of y's dtype, `noise_stride` apart from sample to sample (0: shared), or null. */
int relay_epilogue(void* out, const void* y, const void* scale, const void* noise, const void* strength, const void* bias,
                   int dtype, int last, int64_t planes, int64_t channels, int64_t pixels, int64_t noise_stride,
                   const double* numbers, void* stream);
/* Parts that a plane's sums come in, one above the other: sums of relay_epilogue_grad are (parts, 3, planes), those of
 * relay_epilogue_grad_grad (parts, planes). */
int64_t relay_epilogue_parts(int64_t pixels, int last);
int relay_epilogue_grad(void* gy, void* sums, const void* g, const void* y, const void* scale, const void* noise,
                        const void* strength, const void* bias, int dtype, int last, int64_t planes, int64_t channels,
                        int64_t pixels, int64_t noise_stride, const double* numbers, void* stream);
/* weights (3, planes): cotangents of the sums. */
int relay_epilogue_grad_grad(void* by_g, void* by_y, void* by_scale, const void* v, const void* weights, const void* g,
                             const void* y, const void* scale, const void* noise, const void* strength, const void* bias,
                             int dtype, int last, int64_t planes, int64_t channels, int64_t pixels, int64_t noise_stride,
                             const double* numbers, void* stream);

/* sizes: n, c, h, w, out_h, out_w, up x y, down x y, padding x0 y0, filter h w, separable, flip, and the element strides
 * of x and y (n, c, h, w each): 24 numbers. f: compute tensor (h, w), or (w,) along both axes when separable. */
int relay_upfirdn2d(void* y, const void* x, const void* f, int dtype, const int64_t* sizes, double gain, void* stream);

/* Host library alone, for tests: what the CUDA kernels compute, thread after thread. `fast`: 1 by blocks, 2 by packs of channels (-1 where there is no
 * such form, or `limit` bytes of shared memory do not hold a block), else pixel by pixel. */
int relay_test_upfirdn2d(void* y, const void* x, const void* f, int dtype, const int64_t* sizes, double gain, int fast,
                         int64_t limit);
#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
