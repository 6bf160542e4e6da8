// cuda_on_cpu.h - enough of CUDA C++ for g++ to compile the kernels in engines/kernels.
// The threads of a block are fibres on one thread of the system. Between two barriers they run one
// after the other, in the order of a schedule: what lacks a barrier gives another result when the
// order changes. Shared memory is poisoned before each block.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <type_traits>

#define __global__
#define __device__ static  // local to the file, so that shared memory in a template is too
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static thread_local  // nothing else is, so the driver can poison all of it

struct Index3 {
  unsigned x, y, z;
};
extern Index3 threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace emulator {
void block_barrier();
// values of all lanes of the calling fibre's warp, once all have given theirs
const uint32_t* warp_exchange(unsigned mask, uint32_t value);
int lane();

using Work = std::function<void()>;
template <class... A, size_t... I>
Work bound(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
  return std::bind(kernel, *static_cast<A*>(args[I])...);  // copied, as a launch does
}
template <class... A>
Work bound(void (*kernel)(A...), void** args) {
  return bound(kernel, args, std::index_sequence_for<A...>());
}
struct Register {
  Register(const char* name, Work (*bind)(void** args));
};
}  // namespace emulator

#define EMULATED_KERNEL(name)                \
  static emulator::Register register_##name( \
      #name, [](void** args) { return emulator::bound(&name, args); });

inline void __syncthreads() { emulator::block_barrier(); }
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint32_t* values = emulator::warp_exchange(mask, predicate != 0);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++) bits |= values[i] << i;
  return bits;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(
      emulator::warp_exchange(mask, std::bit_cast<uint32_t>(value))[source & 31]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return __shfl_sync(mask, value, emulator::lane() ^ bits);
}

template <class T>
T atomicAdd(T* address, T value) {
  T old = *address;
  *address = old + value;
  return old;
}
template <class T>
T atomicMin(T* address, T value) {
  T old = *address;
  *address = std::min(old, value);
  return old;
}

template <class T>
T atomicOr(T* address, T value) {
  T old = *address;
  *address = old | value;
  return old;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __int_as_float(int a) { return std::bit_cast<float>(a); }
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
template <class A, class B>
auto min(A a, B b) {
  return a < b ? std::common_type_t<A, B>(a) : std::common_type_t<A, B>(b);
}
template <class A, class B>
auto max(A a, B b) {
  return a < b ? std::common_type_t<A, B>(b) : std::common_type_t<A, B>(a);
}
