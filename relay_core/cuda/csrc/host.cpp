// The host library's element-wise ops: the loops of the kernels around the same element functions, planes shared by
// threads. Every plane is summed by one thread in one order, so that results do not depend on the number of threads.
#include "activation.h"
#include "epilogue.h"
#include "relay_ops.h"

using namespace relay;

namespace {

template <class A>
ActParams<A> params(const double* numbers, int act = PIECEWISE, int from_output = 0) {
  return {act, from_output != 0, static_cast<A>(numbers[0]), static_cast<A>(numbers[1]), static_cast<A>(numbers[2])};
}

template <bool SMOOTH, class T, class A>
void row(T* out, const T* x, const T* b, int64_t b_step, const T* g, int64_t count, int order, const ActParams<A>& p) {
  auto bias = [&](int64_t i) { return b ? A(widen(b[i * b_step])) : A(0); };
  if (order == 0) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) narrow(out[i], bias_act<SMOOTH>(A(widen(x[i])), bias(i), p));
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i)
      narrow(out[i], bias_act_grad<SMOOTH>(A(widen(g[i])), A(widen(x[i])), bias(i), order, p));
  }
}

template <class T>
int run_bias_act(T* out, const T* x, const T* b, const T* g, int64_t count, int64_t inner, int64_t size, int act, int order,
                 int from_output, const double* numbers) {
  using A = compute_t<T>;
  auto p = params<A>(numbers, act, from_output);
  constexpr int64_t RUN = 16384;
  bool along = b && inner == 1;  // the bias runs along memory
  int64_t length = !b ? least(RUN, count) : along ? size : least(inner, RUN), parts = !b || along ? 1 : ceil_div(inner, length);
  int64_t rows = !b ? ceil_div(count, length) : along ? count / size : count / inner * parts;
#pragma omp parallel for schedule(static) if (count > RUN)
  for (int64_t r = 0; r < rows; ++r) {
    int64_t begin = !b || along ? r * length : r / parts * inner + r % parts * length;
    int64_t end = least(begin + length, !b || along ? count : (r / parts + 1) * inner);
    const T* bias = !b || along ? b : b + r / parts % size;
    auto call = act == PIECEWISE ? row<false, T, A> : row<true, T, A>;
    call(out + begin, x + begin, bias, along, g ? g + begin : g, end - begin, order, p);
  }
  return OK;
}

template <class T>
struct Planes {  // pointers of one call, by plane
  using A = compute_t<T>;
  const A *scale, *strength, *bias;
  const T* noise;
  int64_t channels, pixels, noise_stride;
  Plane<A> at(int64_t plane) const {
    return {scale ? scale[plane] : A(1), noise && strength ? *strength : A(noise ? 1 : 0), bias ? bias[plane % channels] : A(0)};
  }
  const T* noise_at(int64_t plane) const { return noise ? noise + plane / channels * noise_stride : nullptr; }
};

template <class T>
Planes<T> planes_of(const void* scale, const void* noise, const void* strength, const void* bias, int64_t channels,
                    int64_t pixels, int64_t noise_stride) {
  using A = compute_t<T>;
  return {static_cast<const A*>(scale), static_cast<const A*>(strength), static_cast<const A*>(bias),
          static_cast<const T*>(noise), channels, pixels, noise_stride};
}

}  // namespace

extern "C" {

int relay_ops_version(void) { return RELAY_OPS_VERSION; }
int relay_devices(void) { return 0; }
const char* relay_error(int) { return "arguments that the host library does not serve"; }
int64_t relay_epilogue_parts(int64_t) { return 1; }

int relay_bias_act(void* out, const void* x, const void* b, const void* g, int dtype, int64_t count, int64_t inner,
                   int64_t size, int act, int order, int from_output, const double* numbers, void*) {
  if (order < 0 || order > 2 || act < PIECEWISE || act > SWISH || (from_output && act != PIECEWISE)) return BAD_ARGUMENT;
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    return run_bias_act(static_cast<T*>(out), static_cast<const T*>(x), static_cast<const T*>(b), static_cast<const T*>(g),
                        count, inner, size, act, order, from_output, numbers);
  });
}

int relay_epilogue(void* out, const void* y, const void* scale, const void* noise, const void* strength, const void* bias,
                   int dtype, int64_t planes, int64_t channels, int64_t pixels, int64_t noise_stride, const double* numbers,
                   void*) {
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using A = compute_t<T>;
    auto all = planes_of<T>(scale, noise, strength, bias, channels, pixels, noise_stride);
    auto p = params<A>(numbers);
#pragma omp parallel for schedule(static) if (planes * pixels > 16384)
    for (int64_t plane = 0; plane < planes; ++plane) {
      const T *from = static_cast<const T*>(y) + plane * pixels, *added = all.noise_at(plane);
      T* to = static_cast<T*>(out) + plane * pixels;
      auto q = all.at(plane);
#pragma omp simd
      for (int64_t i = 0; i < pixels; ++i)
        narrow(to[i], epilogue(A(widen(from[i])), added ? A(widen(added[i])) : A(0), q, p));
    }
    return static_cast<int>(OK);
  });
}

int relay_epilogue_grad(void* gy, void* sums, const void* g, const void* y, const void* scale, const void* noise,
                        const void* strength, const void* bias, int dtype, int64_t planes, int64_t channels, int64_t pixels,
                        int64_t noise_stride, const double* numbers, void*) {
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using A = compute_t<T>;
    auto all = planes_of<T>(scale, noise, strength, bias, channels, pixels, noise_stride);
    auto p = params<A>(numbers);
#pragma omp parallel for schedule(static) if (planes * pixels > 16384)
    for (int64_t plane = 0; plane < planes; ++plane) {
      const T *from = static_cast<const T*>(y) + plane * pixels, *added = all.noise_at(plane);
      const T* grad = static_cast<const T*>(g) + plane * pixels;
      T* to = static_cast<T*>(gy) + plane * pixels;
      auto q = all.at(plane);
      A by_bias = 0, by_scale = 0, by_strength = 0;
#pragma omp simd reduction(+ : by_bias, by_scale, by_strength)
      for (int64_t i = 0; i < pixels; ++i) {
        Sums<A> s = {by_bias, by_scale, by_strength};
        narrow(to[i], epilogue_grad(A(widen(grad[i])), A(widen(from[i])), added ? A(widen(added[i])) : A(0), q, p, s));
        by_bias = s.bias, by_scale = s.scale, by_strength = s.strength;
      }
      A* into = static_cast<A*>(sums) + plane;
      into[0] = by_bias, into[planes] = by_scale, into[2 * planes] = by_strength;
    }
    return static_cast<int>(OK);
  });
}

int relay_epilogue_grad_grad(void* by_g, void* by_y, void* by_scale, const void* v, const void* weights, const void* g,
                             const void* y, const void* scale, const void* noise, const void* strength, const void* bias,
                             int dtype, int64_t planes, int64_t channels, int64_t pixels, int64_t noise_stride,
                             const double* numbers, void*) {
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using A = compute_t<T>;
    auto all = planes_of<T>(scale, noise, strength, bias, channels, pixels, noise_stride);
    auto p = params<A>(numbers);
#pragma omp parallel for schedule(static) if (planes * pixels > 16384)
    for (int64_t plane = 0; plane < planes; ++plane) {
      const T *from = static_cast<const T*>(y) + plane * pixels, *added = all.noise_at(plane);
      const T *grad = static_cast<const T*>(g) + plane * pixels, *along = static_cast<const T*>(v) + plane * pixels;
      T *to_g = static_cast<T*>(by_g) + plane * pixels, *to_y = static_cast<T*>(by_y) + plane * pixels;
      const A* w = static_cast<const A*>(weights) + plane;
      Sums<A> weight = {w[0], w[planes], w[2 * planes]};
      auto q = all.at(plane);
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < pixels; ++i) {
        A part = 0;
        auto second = epilogue_grad_grad(A(widen(along[i])), A(widen(grad[i])), A(widen(from[i])),
                                         added ? A(widen(added[i])) : A(0), q, weight, p, part);
        sum += part;
        narrow(to_g[i], second.by_g);
        narrow(to_y[i], second.by_y);
      }
      static_cast<A*>(by_scale)[plane] = sum;
    }
    return static_cast<int>(OK);
  });
}
}
