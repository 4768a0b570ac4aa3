// Vectors of the widest registers of the instruction set that this is compiled for: numbers in and out of memory, and
// the sums of many vectors' lanes at once. Everything is in an unnamed namespace, for the same name means other code in
// every compilation.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 64, COLUMNS = 4;
#elif defined(__AVX__)
constexpr int WIDTH = 32, COLUMNS = 2;
#else
constexpr int WIDTH = 16, COLUMNS = 2;
#endif

typedef uint16_t bfloat16;
typedef float floats __attribute__((vector_size(WIDTH)));
typedef double doubles __attribute__((vector_size(WIDTH)));
typedef uint32_t words __attribute__((vector_size(WIDTH)));
typedef uint16_t halfwords __attribute__((vector_size(WIDTH / 2)));

template <class S> struct Sum { typedef float type; typedef floats vector; };
template <> struct Sum<double> { typedef double type; typedef doubles vector; };
template <class S> constexpr int LANES = WIDTH / sizeof(typename Sum<S>::type);

inline floats load(const float *p) { floats v; std::memcpy(&v, p, WIDTH); return v; }
inline doubles load(const double *p) { doubles v; std::memcpy(&v, p, WIDTH); return v; }
inline floats load(const bfloat16 *p) {
    halfwords h;
    std::memcpy(&h, p, WIDTH / 2);
    return (floats)(__builtin_convertvector(h, words) << 16);
}
inline void store(float *p, floats v) { std::memcpy(p, &v, WIDTH); }
inline void store(double *p, doubles v) { std::memcpy(p, &v, WIDTH); }
inline void store(bfloat16 *p, floats v) {
    words bits = (words)v;
    words rounded = bits + 0x7fff + ((bits >> 16) & 1);
    words quiet = (bits | 0x400000);
    bits = (v == v) ? rounded : quiet; // rounding could carry a NaN into an infinity
    halfwords h = __builtin_convertvector(bits >> 16, halfwords);
    std::memcpy(p, &h, WIDTH / 2);
}
inline void store_past_cache(float *p, floats v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
    _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE2__)
    _mm_stream_ps(p, (__m128)v);
#else
    store(p, v);
#endif
}
inline void store_past_cache(double *p, doubles v) { store_past_cache((float *)p, (floats)v); }
inline void store_past_cache(bfloat16 *p, floats v) { store(p, v); }

inline float number(float v) { return v; }
inline double number(double v) { return v; }
inline float number(bfloat16 v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline void put(float *p, float v) { *p = v; }
inline void put(double *p, double v) { *p = v; }
inline void put(bfloat16 *p, float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    bits = v == v ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000;
    *p = (bfloat16)(bits >> 16);
}

// f(0), ..., f(N - 1) with constants: a loop would keep the tile of sums in memory, not in registers.
template <int I> struct Index { constexpr operator int() const { return I; } };
template <int N, class F> inline __attribute__((always_inline)) void each(const F &f) {
    if constexpr (N > 0) {
        each<N - 1>(f);
        f(Index<N - 1>{});
    }
}
#define INLINE __attribute__((always_inline))

// Sums of the lanes of LANES vectors at once: pairs are folded into one vector until one is left, whose lane i is the
// sum of vector i. Folding takes blocks of `BLOCK` lanes: the even ones of both vectors plus the odd ones of both.
template <int N, int BLOCK, bool ODD> constexpr int source(int lane) {
    const int half = lane < N / 2 ? 0 : 1, place = lane % (N / 2);
    return half * N + (2 * (place / BLOCK) + (ODD ? 1 : 0)) * BLOCK + place % BLOCK;
}
template <int N, int BLOCK, bool ODD, class V, int... I>
inline INLINE V blocks_of(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, source<N, BLOCK, ODD>(I)...);
#else
    typedef std::conditional_t<sizeof(a[0]) == 8, int64_t, int32_t> Place;
    typedef Place Places __attribute__((vector_size(sizeof(V))));
    return __builtin_shuffle(a, b, Places{source<N, BLOCK, ODD>(I)...});
#endif
}
template <int N, int BLOCK, class V> inline INLINE V fold(V a, V b) {
    constexpr std::make_integer_sequence<int, N> lanes{};
    return blocks_of<N, BLOCK, false>(a, b, lanes) + blocks_of<N, BLOCK, true>(a, b, lanes);
}
// The sums of vectors FIRST .. FIRST + COUNT - 1 of N, as consecutive blocks of lanes; what is beyond N is zero.
template <int N, int FIRST, int COUNT, int L, class V> inline INLINE V sums_of(const V *v) {
    if constexpr (FIRST >= N) return V{};
    else if constexpr (COUNT == 1) return v[FIRST];
    else
        return fold<L, L / COUNT>(sums_of<N, FIRST, COUNT / 2, L>(v), sums_of<N, FIRST + COUNT / 2, COUNT / 2, L>(v));
}

} // namespace
