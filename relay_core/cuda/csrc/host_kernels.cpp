// For the tests: the bodies of the CUDA kernels, run on the host thread after thread.
#include <vector>

#include "relay_ops.h"
#include "upfirdn2d.h"

using namespace relay;

int relay_test_upfirdn2d(void* y, const void* x, const void* f, int dtype, const int64_t* sizes, double gain, int fast,
                         int64_t limit) {
  Resample s(sizes);
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if (fast == 2 && (!s.last || s.c % Pack<T>::size)) return static_cast<int>(BAD_ARGUMENT);
    if (fast == 2) {
      for (int64_t i = 0; i < s.n * s.c * s.oh * s.ow / Pack<T>::size; ++i)
        resample_pack(static_cast<T*>(y), static_cast<const T*>(x), static_cast<const compute_t<T>*>(f), s,
                      static_cast<compute_t<T>>(gain), i);
      return static_cast<int>(OK);
    }
    if (!fast) {
      for (int64_t i = 0; i < s.n * s.c * s.oh * s.ow; ++i)
        resample_pixel(static_cast<T*>(y), static_cast<const T*>(x), static_cast<const compute_t<T>*>(f), s,
                       static_cast<compute_t<T>>(gain), i);
      return static_cast<int>(OK);
    }
    bool done = with_block<T>(s, [&](auto* kind) {
      using B = std::remove_pointer_t<decltype(kind)>;
      Bands bands;
      if (!B::plan(s, limit, bands)) return false;
      std::vector<Pack<double>> shared(static_cast<size_t>(B::bytes(bands) / 16 + 1));
      constexpr int threads = 96;
      for (int64_t index = 0; index < bands.blocks; ++index) {
        std::memset(static_cast<void*>(shared.data()), 0xff, shared.size() * 16);  // NaN: nothing is read unwritten
        B block(s, bands, index, shared.data());
        for (int t = 0; t < threads; ++t) block.load(static_cast<const T*>(x), static_cast<const float*>(f), t, threads);
        for (int t = 0; t < threads; ++t) block.across(t, threads);
        for (int t = 0; t < threads; ++t) block.down(static_cast<float>(gain), t, threads);
        for (int t = 0; t < threads; ++t) block.store(static_cast<T*>(y), t, threads);
      }
      return true;
    });
    return static_cast<int>(done ? OK : BAD_ARGUMENT);
  });
}
