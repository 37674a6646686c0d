// The epilogue on the host: the kernels' element functions in loops that a compiler vectorises. What is summed is summed by
// one thread in one order, so that results do not depend on the number of threads.
#include <vector>

#include "epilogue.h"
#include "relay_ops.h"

using namespace relay;

namespace {

constexpr int64_t WORTH = 16384;  // elements from which on threads pay

template <class T>
struct Call {  // by stage: 0 forward, 1 derivative (g), 2 second derivative (g, v, weights; out_y)
  using A = compute_t<T>;
  T *out, *out_y;
  A* sums;
  const T *v, *g, *y, *noise;
  const A *weights, *scale, *strength, *bias;
  int64_t planes, channels, pixels, noise_stride;
  ActParams<A> p;
  A strength_or_one() const { return noise && strength ? *strength : A(1); }

  template <int STAGE>
  void element(int64_t i, A added, const Plane<A>& q, const Sums<A>& w, A& by_bias, A& by_scale, A& by_strength) const {
    if constexpr (STAGE == 0) {
      narrow(out[i], epilogue(A(widen(y[i])), added, q, p));
    } else if constexpr (STAGE == 1) {
      Sums<A> s = {by_bias, by_scale, by_strength};
      narrow(out[i], epilogue_grad(A(widen(g[i])), A(widen(y[i])), added, q, p, s));
      by_bias = s.bias, by_scale = s.scale, by_strength = s.strength;
    } else {
      A part = 0;
      auto second = epilogue_grad_grad(A(widen(v[i])), A(widen(g[i])), A(widen(y[i])), added, q, w, p, part);
      by_scale += part;
      narrow(out[i], second.by_g);
      narrow(out_y[i], second.by_y);
    }
  }

  template <int STAGE>
  void store(int64_t plane, A by_bias, A by_scale, A by_strength) const {
    if constexpr (STAGE == 1) sums[plane] = by_bias, sums[planes + plane] = by_scale, sums[2 * planes + plane] = by_strength;
    if constexpr (STAGE == 2) sums[plane] = by_scale;
  }

  Plane<A> plane(int64_t i) const {
    return {scale ? scale[i] : A(1), strength_or_one(), bias ? bias[i % channels] : A(0)};
  }
  Sums<A> weight(int64_t i) const {
    if (!weights) return {};
    return {weights[i], weights[planes + i], weights[2 * planes + i]};
  }

  template <int STAGE>
  int contiguous() const {
#pragma omp parallel for schedule(static) if (planes * pixels > WORTH)
    for (int64_t n = 0; n < planes; ++n) {
      const T* added = noise ? noise + n / channels * noise_stride : nullptr;
      auto q = plane(n);
      auto w = weight(n);
      A by_bias = 0, by_scale = 0, by_strength = 0;
#pragma omp simd reduction(+ : by_bias, by_scale, by_strength)
      for (int64_t i = 0; i < pixels; ++i)
        element<STAGE>(n * pixels + i, added ? A(widen(added[i])) : A(0), q, w, by_bias, by_scale, by_strength);
      store<STAGE>(n, by_bias, by_scale, by_strength);
    }
    return OK;
  }

  template <int STAGE>
  int channels_last() const {
    int64_t samples = channels ? planes / channels : 0, parts = STAGE == 0 ? least<int64_t>(pixels, 16) : 1;
#pragma omp parallel if (planes * pixels > WORTH)
    {
      std::vector<Plane<A>> qs(channels);
      std::vector<Sums<A>> ws(channels);
      std::vector<A> by_bias(channels), by_scale(channels), by_strength(channels);
#pragma omp for schedule(static)
      for (int64_t run = 0; run < samples * parts; ++run) {
        int64_t n = run / parts, begin = run % parts * pixels / parts, end = (run % parts + 1) * pixels / parts;
        for (int64_t c = 0; c < channels; ++c) {
          qs[c] = plane(n * channels + c), ws[c] = weight(n * channels + c);
          by_bias[c] = by_scale[c] = by_strength[c] = 0;
        }
        A *sb = by_bias.data(), *ss = by_scale.data(), *st = by_strength.data();
        const Plane<A>* q = qs.data();
        const Sums<A>* w = ws.data();
        for (int64_t i = begin; i < end; ++i) {
          A added = noise ? A(widen(noise[n * noise_stride + i])) : A(0);
          int64_t at = (n * pixels + i) * channels;
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) element<STAGE>(at + c, added, q[c], w[c], sb[c], ss[c], st[c]);
        }
        for (int64_t c = 0; c < channels; ++c) store<STAGE>(n * channels + c, sb[c], ss[c], st[c]);
      }
    }
    return OK;
  }

  template <int STAGE>
  int run(int last) const {
    return last ? channels_last<STAGE>() : contiguous<STAGE>();
  }
};

template <class T>
Call<T> call_of(void* out, const void* y, const void* scale, const void* noise, const void* strength, const void* bias,
                int64_t planes, int64_t channels, int64_t pixels, int64_t noise_stride, const double* numbers) {
  using A = compute_t<T>;
  Call<T> c = {};
  c.out = static_cast<T*>(out), c.y = static_cast<const T*>(y), c.noise = static_cast<const T*>(noise);
  c.scale = static_cast<const A*>(scale), c.strength = static_cast<const A*>(strength), c.bias = static_cast<const A*>(bias);
  c.planes = planes, c.channels = channels, c.pixels = pixels, c.noise_stride = noise_stride;
  c.p = {PIECEWISE, false, static_cast<A>(numbers[0]), static_cast<A>(numbers[1]), static_cast<A>(numbers[2])};
  return c;
}

}  // namespace

int64_t relay_epilogue_parts(int64_t, int) { return 1; }

int relay_epilogue(void* out, const void* y, const void* scale, const void* noise, const void* strength, const void* bias,
                   int dtype, int last, int64_t planes, int64_t channels, int64_t pixels, int64_t noise_stride,
                   const double* numbers, void*) {
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    return call_of<T>(out, y, scale, noise, strength, bias, planes, channels, pixels, noise_stride, numbers)
        .template run<0>(last);
  });
}

int relay_epilogue_grad(void* gy, void* sums, const void* g, const void* y, const void* scale, const void* noise,
                        const void* strength, const void* bias, int dtype, int last, int64_t planes, int64_t channels,
                        int64_t pixels, int64_t noise_stride, const double* numbers, void*) {
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    auto c = call_of<T>(gy, y, scale, noise, strength, bias, planes, channels, pixels, noise_stride, numbers);
    c.sums = static_cast<compute_t<T>*>(sums), c.g = static_cast<const T*>(g);
    return c.template run<1>(last);
  });
}

int relay_epilogue_grad_grad(void* by_g, void* by_y, void* by_scale, const void* v, const void* weights, const void* g,
                             const void* y, const void* scale, const void* noise, const void* strength, const void* bias,
                             int dtype, int last, int64_t planes, int64_t channels, int64_t pixels, int64_t noise_stride,
                             const double* numbers, void*) {
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using A = compute_t<T>;
    auto c = call_of<T>(by_g, y, scale, noise, strength, bias, planes, channels, pixels, noise_stride, numbers);
    c.out_y = static_cast<T*>(by_y), c.sums = static_cast<A*>(by_scale), c.g = static_cast<const T*>(g);
    c.v = static_cast<const T*>(v), c.weights = static_cast<const A*>(weights);
    return c.template run<2>(last);
  });
}
