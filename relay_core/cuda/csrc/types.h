// Storage types and what computes with them, for a host compiler and for nvcc alike.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define RELAY_HD __host__ __device__ __forceinline__
#else
#define RELAY_HD inline __attribute__((always_inline))
#endif
#if defined(__CUDA_ARCH__)
#define RELAY_UNROLL _Pragma("unroll")
#else
#define RELAY_UNROLL
#endif

namespace relay {

enum Dtype { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, FLOAT64 = 3 };
enum Status { OK = 0, BAD_ARGUMENT = -1 };  // positive numbers are CUDA's

#if defined(__CUDACC__)
using half_t = __half;
using bfloat_t = __nv_bfloat16;
RELAY_HD float widen(__half x) { return __half2float(x); }
RELAY_HD float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
RELAY_HD void narrow(__half& to, float x) { to = __float2half_rn(x); }
RELAY_HD void narrow(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }
#else
using half_t = _Float16;
struct bfloat_t {
  uint16_t bits;
};
RELAY_HD float widen(half_t x) { return static_cast<float>(x); }
RELAY_HD float widen(bfloat_t x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
RELAY_HD void narrow(half_t& to, float x) { to = static_cast<half_t>(x); }
RELAY_HD void narrow(bfloat_t& to, float x) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to.bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#endif
RELAY_HD float widen(float x) { return x; }
RELAY_HD double widen(double x) { return x; }
RELAY_HD void narrow(float& to, float x) { to = x; }
RELAY_HD void narrow(double& to, double x) { to = x; }

// What a storage type is computed in: float, and double for double.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

// As many elements as one 16-byte access holds.
template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T at[size];
};

template <class T>
RELAY_HD bool aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

RELAY_HD int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
RELAY_HD int64_t ceil_div(int64_t a, int64_t b) { return floor_div(a + b - 1, b); }
template <class I>
RELAY_HD I least(I a, I b) { return a < b ? a : b; }
template <class I>
RELAY_HD I most(I a, I b) { return a > b ? a : b; }

// Call `run` with a null pointer of the storage type that `dtype` names.
template <class F>
int with_type(int dtype, F run) {
  switch (dtype) {
    case FLOAT32: return run(static_cast<float*>(nullptr));
    case FLOAT16: return run(static_cast<half_t*>(nullptr));
    case BFLOAT16: return run(static_cast<bfloat_t*>(nullptr));
    case FLOAT64: return run(static_cast<double*>(nullptr));
    default: return BAD_ARGUMENT;
  }
}

}  // namespace relay
