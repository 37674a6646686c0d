// Up-sample, pad, filter, down-sample: the index arithmetic, per output pixel and per block of pixels.
// out[oy][ox] = gain * sum over ky, kx of F[ky][kx] * z[oy * dy + ky][ox * dx + kx], where z[j] = x[(j - p) / u] if u
// divides j - p and the index lies inside x, else 0; F is f, turned around unless `flip` asks for correlation.
#pragma once
#include "types.h"

namespace relay {

struct Resample {
  int64_t n, c, h, w, oh, ow, ux, uy, dx, dy, px, py, fh, fw, separable, flip;
  int64_t xs[4], ys[4];
  bool plain, last;  // both images contiguous; both channels-last
  explicit Resample(const int64_t* s)
      : n(s[0]), c(s[1]), h(s[2]), w(s[3]), oh(s[4]), ow(s[5]), ux(s[6]), uy(s[7]), dx(s[8]), dy(s[9]), px(s[10]),
        py(s[11]), fh(s[12]), fw(s[13]), separable(s[14]), flip(s[15]) {
    for (int i = 0; i < 4; ++i) xs[i] = s[16 + i], ys[i] = s[20 + i];
    plain = xs[3] == 1 && xs[2] == w && xs[1] == h * w && xs[0] == c * h * w;
    plain = plain && ys[3] == 1 && ys[2] == ow && ys[1] == oh * ow && ys[0] == c * oh * ow;
    last = !plain && xs[1] == 1 && xs[3] == c && xs[2] == c * w && xs[0] == c * w * h;
    last = last && ys[1] == 1 && ys[3] == c && ys[2] == c * ow && ys[0] == c * ow * oh;
  }
};

RELAY_HD int64_t modulo(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }

// Any factors, filters and strides: one output pixel, `index` counting in memory order of a contiguous result.
template <class T>
RELAY_HD void resample_pixel(T* y, const T* x, const compute_t<T>* f, const Resample& s, compute_t<T> gain, int64_t index) {
  using A = compute_t<T>;
  int64_t ox = index % s.ow, oy = index / s.ow % s.oh, plane = index / (s.ow * s.oh), c = plane % s.c, n = plane / s.c;
  const T* from = x + n * s.xs[0] + c * s.xs[1];
  int64_t kx0 = modulo(s.px - ox * s.dx, s.ux), ky0 = modulo(s.py - oy * s.dy, s.uy);
  int64_t ix0 = floor_div(ox * s.dx + kx0 - s.px, s.ux), iy = floor_div(oy * s.dy + ky0 - s.py, s.uy);
  A sum = 0;
  for (int64_t ky = ky0; ky < s.fh; ky += s.uy, ++iy) {
    if (iy < 0 || iy >= s.h) continue;
    int64_t fy = s.flip ? ky : s.fh - 1 - ky, ix = ix0;
    A row = 0;
    for (int64_t kx = kx0; kx < s.fw; kx += s.ux, ++ix) {
      if (ix < 0 || ix >= s.w) continue;
      int64_t fx = s.flip ? kx : s.fw - 1 - kx;
      row += f[s.separable ? fx : fy * s.fw + fx] * widen(from[iy * s.xs[2] + ix * s.xs[3]]);
    }
    sum += s.separable ? f[fy] * row : row;
  }
  narrow(y[n * s.ys[0] + c * s.ys[1] + oy * s.ys[2] + ox * s.ys[3]], sum * gain);
}

// Channels-last: 16 bytes of the channels of one output pixel, `index` counting such packs in memory order.
template <class T>
RELAY_HD void resample_pack(T* y, const T* x, const compute_t<T>* f, const Resample& s, compute_t<T> gain, int64_t index) {
  using A = compute_t<T>;
  constexpr int N = Pack<T>::size;
  int packs = static_cast<int>(s.c / N), pack = static_cast<int>(index % packs);
  int64_t pixel = index / packs, ox = pixel % s.ow, oy = pixel / s.ow % s.oh, n = pixel / s.ow / s.oh;
  const T* from = x + n * s.xs[0] + pack * N;
  int ux = static_cast<int>(s.ux), uy = static_cast<int>(s.uy), kx0 = static_cast<int>(modulo(s.px - ox * s.dx, ux));
  int ix0 = static_cast<int>(floor_div(ox * s.dx + kx0 - s.px, ux)), ky = static_cast<int>(modulo(s.py - oy * s.dy, uy));
  int iy = static_cast<int>(floor_div(oy * s.dy + ky - s.py, uy)), fw = static_cast<int>(s.fw), fh = static_cast<int>(s.fh);
  A sums[N] = {};
  for (; ky < fh; ky += uy, ++iy) {
    if (iy < 0 || iy >= s.h) continue;
    int fy = s.flip ? ky : fh - 1 - ky, ix = ix0;
    for (int kx = kx0; kx < fw; kx += ux, ++ix) {
      if (ix < 0 || ix >= s.w) continue;
      int fx = s.flip ? kx : fw - 1 - kx;
      A tap = s.separable ? f[fy] * f[fx] : f[fy * fw + fx];
      Pack<T> value = *reinterpret_cast<const Pack<T>*>(from + iy * s.xs[2] + ix * s.c);
      RELAY_UNROLL
      for (int k = 0; k < N; ++k) sums[k] += tap * widen(value.at[k]);
    }
  }
  Pack<T> out;
  RELAY_UNROLL
  for (int k = 0; k < N; ++k) narrow(out.at[k], sums[k] * gain);
  *reinterpret_cast<Pack<T>*>(y + index * N) = out;
}

// Fast form for contiguous images: a block takes whole small planes, or a band of rows of one large plane. Either way what
// it reads and what it writes are runs of memory, so that both move 16 bytes at a time whatever the width of a row.
struct Bands {
  int planes, rows, per_plane, in_rows;  // planes and output rows a block; bands a plane; input rows it may need
  int64_t blocks;
  int in_size, mid_size, out_size;  // elements in shared memory
};

template <class T, int U, int D, int TAPS, bool SEP>
struct Block {
  static constexpr int COLUMN = U == 1 ? 4 : 1;  // output rows a thread computes from the rows that they share
  static constexpr int FILTER = SEP ? TAPS : TAPS * TAPS;
  const Resample& s;
  const Bands& b;
  int64_t first;                                   // plane
  int planes, top, rows, low, high;                // this block's planes, output rows and input rows [low, high]
  float *f, *in, *mid;
  T* out;
  int shift;  // of `out` against 16-byte boundaries, as in global memory

  // Shared memory of a block, bytes.
  static int64_t bytes(const Bands& b) {
    return 4 * (static_cast<int64_t>(padded(FILTER)) + padded(b.in_size) + padded(b.mid_size)) + 2 * 16 +
           static_cast<int64_t>(sizeof(T)) * b.out_size;
  }
  RELAY_HD static int padded(int count) { return (count + 3) / 4 * 4; }

  // How to cut the work; false if a block of four rows is too much for `limit` bytes.
  static bool plan(const Resample& s, int64_t limit, Bands& b) {
    if (s.h * s.w > 1 << 24 || s.oh * s.ow > 1 << 24) return false;
    for (int rows = 64; rows >= 4; rows /= 2) {
      b.rows = static_cast<int>(least<int64_t>(rows, s.oh));
      b.per_plane = static_cast<int>(ceil_div(s.oh, b.rows));
      bool whole = b.per_plane == 1;
      b.in_rows = static_cast<int>(whole ? s.h : least<int64_t>(s.h, ((b.rows - 1) * D + TAPS - 1) / U + 2));
      int64_t area = b.rows * s.ow, planes = s.n * s.c;
      b.planes = whole ? static_cast<int>(most<int64_t>(1, least<int64_t>(2048 / area, planes))) : 1;
      b.blocks = whole ? ceil_div(planes, b.planes) : planes * b.per_plane;
      b.in_size = static_cast<int>(b.planes * b.in_rows * s.w);
      b.mid_size = SEP ? static_cast<int>(b.planes * b.in_rows * s.ow) : 0;
      b.out_size = static_cast<int>(b.planes * area);
      if (bytes(b) <= limit) return true;
    }
    return false;
  }

  RELAY_HD Block(const Resample& s, const Bands& b, int64_t block, void* shared) : s(s), b(b) {
    first = b.per_plane == 1 ? block * b.planes : block / b.per_plane;
    planes = static_cast<int>(least<int64_t>(b.planes, s.n * s.c - first));
    top = b.per_plane == 1 ? 0 : static_cast<int>(block % b.per_plane) * b.rows;
    rows = static_cast<int>(least<int64_t>(b.rows, s.oh - top));
    low = 0, high = static_cast<int>(s.h) - 1;
    if (b.per_plane > 1) {
      low = static_cast<int>(most<int64_t>(0, ceil_div(top * D - s.py, U)));
      high = static_cast<int>(least<int64_t>(high, floor_div((top + rows - 1) * D + TAPS - 1 - s.py, U)));
    }
    f = static_cast<float*>(shared);
    in = f + padded(FILTER);
    mid = in + padded(b.in_size);
    shift = static_cast<int>((first * s.oh + top) * s.ow % Pack<T>::size);
    out = reinterpret_cast<T*>(mid + padded(b.mid_size)) + shift;
  }
  RELAY_HD int in_rows() const { return high < low ? 0 : high - low + 1; }

  RELAY_HD void load(const T* x, const float* filter, int thread, int threads) {
    for (int i = thread; i < FILTER; i += threads) f[i] = filter[s.flip ? i : FILTER - 1 - i];
    const T* from = x + (first * s.h + low) * s.w;
    int count = planes * in_rows() * static_cast<int>(s.w);
    int head = static_cast<int>((16 - reinterpret_cast<uintptr_t>(from) % 16) % 16 / sizeof(T));
    head = least(head, count);
    int packs = (count - head) / Pack<T>::size;
    for (int i = thread; i < packs; i += threads) {
      int at = head + i * Pack<T>::size;
      Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from + at);
      RELAY_UNROLL
      for (int k = 0; k < Pack<T>::size; ++k) in[at + k] = widen(pack.at[k]);
    }
    for (int i = thread; i < head; i += threads) in[i] = widen(from[i]);
    for (int i = head + packs * Pack<T>::size + thread; i < count; i += threads) in[i] = widen(from[i]);
  }

  // One row's filter at output column ox.
  RELAY_HD float dot(const float* row, const float* taps, int ox) const {
    int k0 = U == 1 ? 0 : static_cast<int>(modulo(s.px - ox * D, U));
    int ix = static_cast<int>(U == 1 ? ox * D - s.px : floor_div(ox * D + k0 - s.px, U));
    float sum = 0;
    RELAY_UNROLL
    for (int j = 0; j < TAPS / U; ++j, ++ix) {
      if (static_cast<unsigned>(ix) < static_cast<unsigned>(s.w)) sum += taps[k0 + j * U] * row[ix];
    }
    return sum;
  }

  RELAY_HD void across(int thread, int threads) {  // separable filters: along the rows first
    if (!SEP) return;
    int ow = static_cast<int>(s.ow), count = planes * in_rows() * ow;
    for (int i = thread; i < count; i += threads) mid[i] = dot(in + i / ow * static_cast<int>(s.w), f, i % ow);
  }

  RELAY_HD void down(float gain, int thread, int threads) {
    int ow = static_cast<int>(s.ow), groups = (rows + COLUMN - 1) / COLUMN, height = in_rows();
    for (int i = thread; i < planes * groups * ow; i += threads) {
      int ox = i % ow, group = i / ow % groups, plane = i / ow / groups, row = group * COLUMN;
      int64_t start = static_cast<int64_t>(top + row) * D - s.py;
      int k0 = U == 1 ? 0 : static_cast<int>(modulo(-start, U));
      int iy = static_cast<int>(U == 1 ? start : floor_div(start + k0, U)) - low;
      float sums[COLUMN] = {};
      constexpr int SHARED = U == 1 ? (COLUMN - 1) * D + TAPS : TAPS / U;
      RELAY_UNROLL
      for (int j = 0; j < SHARED; ++j) {
        if (static_cast<unsigned>(iy + j) >= static_cast<unsigned>(height)) continue;
        int at = plane * height + iy + j;
        if constexpr (SEP) {
          float value = mid[at * ow + ox];
          RELAY_UNROLL
          for (int r = 0; r < COLUMN; ++r) {
            int k = U == 1 ? j - r * D : k0 + j * U;
            if (k >= 0 && k < TAPS) sums[r] += f[k] * value;
          }
        } else {
          RELAY_UNROLL
          for (int r = 0; r < COLUMN; ++r) {
            int k = U == 1 ? j - r * D : k0 + j * U;
            if (k >= 0 && k < TAPS) sums[r] += dot(in + at * static_cast<int>(s.w), f + k * TAPS, ox);
          }
        }
      }
      RELAY_UNROLL
      for (int r = 0; r < COLUMN; ++r) {
        if (row + r < rows) narrow(out[(plane * rows + row + r) * ow + ox], sums[r] * gain);
      }
    }
  }

  RELAY_HD void store(T* y, int thread, int threads) const {
    T* to = y + (first * s.oh + top) * s.ow;
    int count = planes * rows * static_cast<int>(s.ow);
    int head = least((Pack<T>::size - shift) % Pack<T>::size, count);
    int packs = (count - head) / Pack<T>::size;
    for (int i = thread; i < packs; i += threads) {
      int at = head + i * Pack<T>::size;
      *reinterpret_cast<Pack<T>*>(to + at) = *reinterpret_cast<const Pack<T>*>(out + at);
    }
    for (int i = thread; i < head; i += threads) to[i] = out[i];
    for (int i = head + packs * Pack<T>::size + thread; i < count; i += threads) to[i] = out[i];
  }
};

// What the networks use: [1, 3, 3, 1] up 2, down 2, same size; sym6 up 2 and down 2. `run` gets the block type's null
// pointer; false if it is none of these.
template <class T, class F>
bool with_block(const Resample& s, F run) {
  if (std::is_same<T, double>::value || !s.plain || s.ux != s.uy || s.dx != s.dy || s.fh != s.fw) return false;
  auto is = [&](int u, int d, int taps, bool sep) {
    return s.ux == u && s.dx == d && s.fw == taps && (s.separable != 0) == sep;
  };
  if (is(1, 1, 4, false)) return run(static_cast<Block<T, 1, 1, 4, false>*>(nullptr));
  if (is(2, 1, 4, false)) return run(static_cast<Block<T, 2, 1, 4, false>*>(nullptr));
  if (is(1, 2, 4, false)) return run(static_cast<Block<T, 1, 2, 4, false>*>(nullptr));
  if (is(2, 1, 12, true)) return run(static_cast<Block<T, 2, 1, 12, true>*>(nullptr));
  if (is(1, 2, 12, true)) return run(static_cast<Block<T, 1, 2, 12, true>*>(nullptr));
  return false;
}

}  // namespace relay
