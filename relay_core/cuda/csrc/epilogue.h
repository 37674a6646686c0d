// What follows a modulated convolution: u = y * scale + noise * strength + bias, then clamp(gain * lrelu(u)).
// With m = gain * slope(u) inside the clamp, 0 outside, the derivatives are, sums running over a plane's pixels:
//   gy = g m scale,  S0 = sum g m (bias),  S1 = sum g m y (scale),  S2 = sum g m noise (strength);
// and of these, for cotangents v of gy and (a, b, c) of the sums:
//   by g: m (v scale + a + b y + c noise),  by y: m g b,  by scale: sum m g v.   m is piecewise constant.
#pragma once
#include "activation.h"

namespace relay {

template <class A>
struct Plane {  // the numbers that all pixels of one plane (n, c) share
  A scale, strength, bias;
};

template <class A>
RELAY_HD A epilogue(A y, A noise, const Plane<A>& q, const ActParams<A>& p) {
  return bounded(p.gain * piecewise(y * q.scale + noise * q.strength + q.bias, p.slope), p.clamp);
}

template <class A>
RELAY_HD A epilogue_slope(A y, A noise, const Plane<A>& q, const ActParams<A>& p) {
  A u = y * q.scale + noise * q.strength + q.bias;
  return passes(p.gain * piecewise(u, p.slope), p.clamp, false) ? p.gain * (u > 0 ? A(1) : p.slope) : A(0);
}

template <class A>
struct Sums {
  A bias, scale, strength;
};

template <class A>
RELAY_HD A epilogue_grad(A g, A y, A noise, const Plane<A>& q, const ActParams<A>& p, Sums<A>& sums) {
  A gu = g * epilogue_slope(y, noise, q, p);
  sums.bias += gu;
  sums.scale += gu * y;
  sums.strength += gu * noise;
  return gu * q.scale;
}

template <class A>
struct Second {
  A by_g, by_y;
};

template <class A>
RELAY_HD Second<A> epilogue_grad_grad(A v, A g, A y, A noise, const Plane<A>& q, const Sums<A>& w, const ActParams<A>& p,
                                      A& by_scale) {
  A m = epilogue_slope(y, noise, q, p);
  by_scale += m * g * v;
  return {m * (v * q.scale + w.bias + w.scale * y + w.strength * noise), m * g * w.scale};
}

}  // namespace relay
