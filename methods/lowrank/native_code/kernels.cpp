// The arithmetic, compiled once per instruction set. Two kernels do all of it:
//   dots:    out[m, r] = sum_d  x[m, d] * a[r, d]      (A x, and B^T dy)
//   combine: out[i, d] = init[i, d] + sum_k w[i, k] * v[k, d]   (y, dx, and the gradients of the factors)
// No function of the C++ library is used here: the linker could take its code for one instruction set for all.
#include "abi.h"
#include "lanes.h"

namespace {

constexpr int64_t BLOCK = LOWRANK_BLOCK;                 // tokens that are worked on together
constexpr int64_t AHEAD = 4;                  // rows that are fetched before they are needed
constexpr int PREFETCH = 3;                   // into the first cache
constexpr int64_t STREAM_BYTES = 1 << 20;     // results beyond this pass by the caches
constexpr int64_t STRIP_BYTES = 16 << 10;     // of what `combine` reads for every row of its result
constexpr int64_t CHUNK_BYTES = 32 << 10;     // of a factor, that stay there while tokens pass

// `soon` are rows that are read after these, or null: rows of a mixed batch lie apart, where no prefetcher guesses them.
template <class S, int M, int R>
inline void dots_tile(const S *const *x, const S *a, int64_t d, int64_t first, int64_t last,
                      typename Sum<S>::type *out, int64_t rank, const S *const *soon) {
    typedef typename Sum<S>::vector V;
    constexpr int L = LANES<S>;
    V sum[M][R];
    each<M>([&](auto m) INLINE { each<R>([&](auto r) INLINE { sum[m][r] = V{}; }); });
    int64_t c = first;
    for (; c + L <= last; c += L) {
        V row[R];
        each<R>([&](auto r) INLINE { row[r] = load(a + r * d + c); });
        if (soon) each<M>([&](auto m) INLINE { __builtin_prefetch(soon[m] + c, 0, PREFETCH); });
        each<M>([&](auto m) INLINE {
            const V v = load(x[m] + c);
            each<R>([&](auto r) INLINE { sum[m][r] += v * row[r]; });
        });
    }
    constexpr int GROUPS = (M * R + L - 1) / L;
    typename Sum<S>::type sums[GROUPS * L];
    each<GROUPS>([&](auto g) INLINE { store(sums + g * L, sums_of<M * R, g * L, L, L>(&sum[0][0])); });
    each<M>([&](auto m) INLINE {
        each<R>([&](auto r) INLINE {
            auto s = sums[m * R + r];
            for (int64_t k = c; k < last; k++) s += number(x[m][k]) * number(a[r * d + k]);
            out[m * rank + r] += s;
        });
    });
}

template <class S, int M>
inline void dots_ranks(const S *const *x, const S *a, int64_t d, int64_t first, int64_t last,
                       typename Sum<S>::type *out, int64_t rank, const S *const *soon) {
    int64_t r = 0;
    for (; r + 4 <= rank; r += 4)
        dots_tile<S, M, 4>(x, a + r * d, d, first, last, out + r, rank, r == 0 ? soon : nullptr);
    soon = r == 0 ? soon : nullptr;
    switch (rank - r) {
    case 3: dots_tile<S, M, 3>(x, a + r * d, d, first, last, out + r, rank, soon); break;
    case 2: dots_tile<S, M, 2>(x, a + r * d, d, first, last, out + r, rank, soon); break;
    case 1: dots_tile<S, M, 1>(x, a + r * d, d, first, last, out + r, rank, soon); break;
    }
}

// out [n, rank] = rows x of d numbers times a [rank, d] transposed; behind the n rows of x stand `more` that come soon
template <class S>
void dots(const S *const *x, int64_t n, int64_t more, const S *a, int64_t d, typename Sum<S>::type *out, int64_t rank) {
    constexpr int M = WIDTH == 64 ? 4 : 2;
    for (int64_t i = 0; i < n * rank; i++) out[i] = 0;
    int64_t chunk = CHUNK_BYTES / (int64_t)sizeof(S) / (rank > 0 ? rank : 1) / 64 * 64;
    chunk = chunk < 512 ? 512 : chunk > 2048 ? 2048 : chunk;
    for (int64_t first = 0; first < d; first += chunk) {
        const int64_t last = first + chunk < d ? first + chunk : d;
        int64_t m = 0;
        auto soon = [&](int64_t rows) { return m + 2 * rows <= n + more ? x + m + rows : nullptr; };
        for (; m + M <= n; m += M) dots_ranks<S, M>(x + m, a, d, first, last, out + m * rank, rank, soon(M));
        switch (n - m) {
        case 3: dots_ranks<S, 3>(x + m, a, d, first, last, out + m * rank, rank, soon(3)); break;
        case 2: dots_ranks<S, 2>(x + m, a, d, first, last, out + m * rank, rank, soon(2)); break;
        case 1: dots_ranks<S, 1>(x + m, a, d, first, last, out + m * rank, rank, soon(1)); break;
        }
    }
}

// Weights w[i, k] stand at w + i * wi + k * wk; init rows may be null (zero) and may be the out rows. Results are of type
// O: sums over many tokens are kept in the type of sums, since they are put down and taken up again block by block.
template <class A> struct Weights { const A *w; int64_t wi, wk; };

template <class O, class S, int I, int C, bool STREAM>
inline void combine_tile(O *const *out, const O *const *init, Weights<typename Sum<S>::type> w, const S *const *v,
                         int64_t n, int64_t c) {
    typedef typename Sum<S>::vector V;
    constexpr int L = LANES<S>;
    V sum[I][C];
    if (init) each<I>([&](auto i) INLINE { each<C>([&](auto j) INLINE { sum[i][j] = load(init[i] + c + j * L); }); });
    else each<I>([&](auto i) INLINE { each<C>([&](auto j) INLINE { sum[i][j] = V{}; }); });
    for (int64_t k = 0; k < n; k++) {
        V row[C];
        each<C>([&](auto j) INLINE { row[j] = load(v[k] + c + j * L); });
        each<I>([&](auto i) INLINE {
            const auto weight = w.w[i * w.wi + k * w.wk];
            each<C>([&](auto j) INLINE { sum[i][j] += weight * row[j]; });
        });
    }
    each<I>([&](auto i) INLINE {
        each<C>([&](auto j) INLINE {
            if constexpr (STREAM) store_past_cache(out[i] + c + j * L, sum[i][j]);
            else store(out[i] + c + j * L, sum[i][j]);
        });
    });
}

template <class O, class S, int I, bool STREAM>
inline void combine_strip(O *const *out, const O *const *init, Weights<typename Sum<S>::type> w, const S *const *v,
                          int64_t n, int64_t first, int64_t last) {
    constexpr int L = LANES<S>;
    int64_t c = first;
    for (; c + COLUMNS * L <= last; c += COLUMNS * L) combine_tile<O, S, I, COLUMNS, STREAM>(out, init, w, v, n, c);
    for (; c + L <= last; c += L) combine_tile<O, S, I, 1, STREAM>(out, init, w, v, n, c);
    for (; c < last; c++)
        for (int i = 0; i < I; i++) {
            typename Sum<S>::type s = init ? number(init[i][c]) : 0;
            for (int64_t k = 0; k < n; k++) s += w.w[i * w.wi + k * w.wk] * number(v[k][c]);
            put(out[i] + c, s);
        }
}

template <class O, class S, bool STREAM>
void combine_columns(O *const *out, const O *const *init, int64_t rows, Weights<typename Sum<S>::type> w,
                     const S *const *v, int64_t n, int64_t first, int64_t last) {
    // Strips of v that stay in the first cache while rows of out pass: long enough for the prefetcher to follow.
    constexpr int64_t TILE = COLUMNS * LANES<S>;
    int64_t strip = STRIP_BYTES / (int64_t)sizeof(S) / (n > 0 ? n : 1) / TILE * TILE;
    strip = strip < TILE ? TILE : strip;
    auto part = [&](int64_t at) { return Weights<typename Sum<S>::type>{w.w + at * w.wi, w.wi, w.wk}; };
    auto from = [&](int64_t at) { return init ? init + at : nullptr; };
    for (int64_t c = first; c < last; c += strip) {
        const int64_t until = c + strip < last ? c + strip : last;
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4) combine_strip<O, S, 4, STREAM>(out + i, from(i), part(i), v, n, c, until);
        switch (rows - i) {
        case 3: combine_strip<O, S, 3, STREAM>(out + i, from(i), part(i), v, n, c, until); break;
        case 2: combine_strip<O, S, 2, STREAM>(out + i, from(i), part(i), v, n, c, until); break;
        case 1: combine_strip<O, S, 1, STREAM>(out + i, from(i), part(i), v, n, c, until); break;
        }
    }
}

template <class O, class S>
void combine(O *const *out, const O *const *init, int64_t rows, Weights<typename Sum<S>::type> w, const S *const *v,
             int64_t n, int64_t first, int64_t last, bool stream) {
    // Streaming stores want whole vectors at aligned places.
    for (int64_t i = 0; stream && i < rows; i++) stream = (uintptr_t)(out[i] + first) % WIDTH == 0;
    if (stream) combine_columns<O, S, true>(out, init, rows, w, v, n, first, last);
    else combine_columns<O, S, false>(out, init, rows, w, v, n, first, last);
}

template <class S> struct Kernels {
    typedef typename Sum<S>::type A;

    static A scale_of(const LowrankCall *call, int64_t user) {
        return call->user_scale ? ((const A *)call->user_scale)[user] : (A)call->scale;
    }

    static int64_t row_of(const LowrankCall *call, int64_t segment) {
        return call->rows ? segment : call->users[segment];
    }

    static void rows_at(const LowrankCall *call, const void *first, int64_t stride, int64_t start, int64_t n,
                        const S **rows) {
        for (int64_t i = 0; i < n; i++) rows[i] = (const S *)first + call->order[start + i] * stride;
    }

    // How many rows after `end` may be named as coming soon.
    static int64_t ahead(const LowrankCall *call, int64_t end) {
        return call->tokens - end < AHEAD ? call->tokens - end : AHEAD;
    }

    static void ranks_at(const S *factor, int64_t d, int64_t rank, const S **rows) {
        for (int64_t r = 0; r < rank; r++) rows[r] = factor + r * d;
    }

    // z = C h, or C^T h with `back`
    static void through(const LowrankCall *call, int64_t user, const A *h, A *z, bool back) {
        const int64_t rank = call->rank;
        if (call->core_kind == 0) {
            for (int64_t i = 0; i < rank; i++) z[i] = h[i];
        } else if (call->core_kind == 2) {
            const S *core = (const S *)call->core + user * rank;
            for (int64_t i = 0; i < rank; i++) z[i] = number(core[i]) * h[i];
        } else {
            const S *core = (const S *)call->core + user * rank * rank;
            for (int64_t i = 0; i < rank; i++) {
                A s = 0;
                for (int64_t j = 0; j < rank; j++) s += number(core[back ? j * rank + i : i * rank + j]) * h[j];
                z[i] = s;
            }
        }
    }

    static void plain(const LowrankCall *call, int64_t start, int64_t end, bool backward) {
        for (int64_t t = start; t < end; t++) {
            const int64_t token = call->order[t];
            if (backward) {
                if (call->dx && !call->accumulate)
                    std::memset((S *)call->dx + token * call->d_in, 0, call->d_in * sizeof(S));
                continue;
            }
            S *y = (S *)call->y + token * call->d_out;
            const S *base = call->base ? (const S *)call->base + token * call->base_stride : nullptr;
            if (!base) std::memset(y, 0, call->d_out * sizeof(S));
            else if (base != y) std::memcpy(y, base, call->d_out * sizeof(S));
        }
    }

    // f(segment, i, end) for the tokens at + i .. at + end of a block of n that are one segment's; `segment` is that of
    // the first, and becomes that of the token behind the block.
    template <class F> static void runs(const LowrankCall *call, int64_t &segment, int64_t at, int64_t n, const F &f) {
        for (int64_t i = 0; i < n;) {
            const int64_t last = call->offsets[segment + 1] - at, end = last < n ? last : n;
            f(segment, i, end);
            if (last <= n) segment++;
            i = end;
        }
    }

    // out [n, rank] = rows times a shared factor, or run by run times the users' own
    static void shrink(const LowrankCall *call, const void *factor, int64_t stride, int64_t segment, int64_t at,
                       const S *const *rows, int64_t n, int64_t more, int64_t d, A *out) {
        if (!stride) return dots<S>(rows, n, more, (const S *)factor, d, out, call->rank);
        runs(call, segment, at, n, [&](int64_t s, int64_t i, int64_t end) {
            const S *own = (const S *)factor + stride * call->users[s];
            dots<S>(rows + i, end - i, n - end + more, own, d, out + i * call->rank, call->rank);
        });
    }

    // out rows = init + weights [n, rank] times a shared factor, or run by run times the users' own
    static void expand(const LowrankCall *call, const void *factor, int64_t stride, int64_t segment, int64_t at,
                       const A *weights, int64_t n, int64_t d, S *const *out, const S *const *init, bool stream) {
        const int64_t rank = call->rank;
        const S *ranks[LOWRANK_MAX_RANK];
        if (!stride) {
            ranks_at((const S *)factor, d, rank, ranks);
            return combine<S, S>(out, init, n, {weights, rank, 1}, ranks, rank, 0, d, stream);
        }
        runs(call, segment, at, n, [&](int64_t s, int64_t i, int64_t end) {
            ranks_at((const S *)factor + stride * call->users[s], d, rank, ranks);
            combine<S, S>(out + i, init ? init + i : nullptr, end - i, {weights + i * rank, rank, 1}, ranks, rank, 0, d,
                       stream);
        });
    }

    static void forward(const LowrankCall *call, int64_t segment, int64_t start, int64_t end) {
        const int64_t rank = call->rank;
        const bool stream = call->tokens * call->d_out * (int64_t)sizeof(S) > STREAM_BYTES;
        const S *x[BLOCK + AHEAD], *base[BLOCK];
        S *y[BLOCK];
        A z[BLOCK * LOWRANK_MAX_RANK];
        for (int64_t at = start; at < end; at += BLOCK) {
            const int64_t n = end - at < BLOCK ? end - at : BLOCK, more = ahead(call, at + n), first = segment;
            A *h = (A *)call->hidden + at * rank;
            rows_at(call, call->x, call->x_stride, at, n + more, x);
            rows_at(call, call->y, call->d_out, at, n, (const S **)y);
            if (call->base) rows_at(call, call->base, call->base_stride, at, n, base);
            shrink(call, call->a, call->a_stride, first, at, x, n, more, call->d_in, h);
            runs(call, segment, at, n, [&](int64_t s, int64_t i, int64_t last) {
                const int64_t user = call->users[s];
                const A scale = scale_of(call, user);
                for (; i < last; i++) {
                    through(call, user, h + i * rank, z + i * rank, false);
                    for (int64_t r = 0; r < rank; r++) z[i * rank + r] *= scale;
                }
            });
            expand(call, call->b, call->b_stride, first, at, z, n, call->d_out, y, call->base ? base : nullptr, stream);
        }
    }

    // g = B^T dy, dL/d(A x) = C^T scale g and scale C A x into the scratch; dx; with `whole` segments also what sums over
    // their tokens, while these are in the cache.
    static void backward(const LowrankCall *call, int64_t segment, int64_t start, int64_t end, bool whole) {
        const int64_t rank = call->rank, size = call->tokens * rank;
        const bool stream = call->tokens * call->d_in * (int64_t)sizeof(S) > STREAM_BYTES && !call->accumulate;
        const S *dy[BLOCK + AHEAD];
        S *dx[BLOCK];
        for (int64_t at = start; at < end; at += BLOCK) {
            const int64_t n = end - at < BLOCK ? end - at : BLOCK, more = ahead(call, at + n), first = segment;
            const A *h = (const A *)call->hidden + at * rank;
            A *g = (A *)call->scratch + at * rank, *dh = g + size, *z = dh + size;
            rows_at(call, call->dy, call->dy_stride, at, n + more, dy);
            shrink(call, call->b, call->b_stride, first, at, dy, n, more, call->d_out, g);
            runs(call, segment, at, n, [&](int64_t s, int64_t i, int64_t last) {
                const int64_t user = call->users[s];
                const A scale = scale_of(call, user);
                for (; i < last; i++) {
                    through(call, user, g + i * rank, dh + i * rank, true);
                    through(call, user, h + i * rank, z + i * rank, false);
                    for (int64_t r = 0; r < rank; r++) dh[i * rank + r] *= scale, z[i * rank + r] *= scale;
                }
            });
            if (call->dx) {
                rows_at(call, call->dx, call->d_in, at, n, (const S **)dx);
                expand(call, call->a, call->a_stride, first, at, dh, n, call->d_in, dx,
                       call->accumulate ? (const S *const *)dx : nullptr, stream);
            }
            if (!whole) continue;
            int64_t cursor = first;
            runs(call, cursor, at, n, [&](int64_t s, int64_t i, int64_t last) {
                const int64_t row = row_of(call, s), begin = call->offsets[s], until = call->offsets[s + 1];
                const bool add = call->accumulate || at + i > begin;
                if (call->db && call->b_stride) factor(call, 1, row, add, at + i, at + last, 0, call->d_out);
                if (call->da && call->a_stride) factor(call, 0, row, add, at + i, at + last, 0, call->d_in);
                if (at + last == until && (call->dcore || call->dscale)) narrow(call, s, begin, until);
            });
        }
    }

    static void narrow(const LowrankCall *call, int64_t segment, int64_t start, int64_t end) {
        const int64_t rank = call->rank, user = call->users[segment], row = row_of(call, segment);
        const A *g = (const A *)call->scratch, *h = (const A *)call->hidden;
        const A scale = scale_of(call, user);
        if (call->dscale) {
            double sum = call->accumulate ? ((A *)call->dscale)[row] : 0;
            A z[LOWRANK_MAX_RANK];
            for (int64_t t = start; t < end; t++) {
                through(call, user, h + t * rank, z, false);
                for (int64_t r = 0; r < rank; r++) sum += (double)g[t * rank + r] * z[r];
            }
            ((A *)call->dscale)[row] = (A)sum;
        }
        if (!call->dcore) return;
        const int64_t columns = call->core_kind == 1 ? rank : 1;
        S *out = (S *)call->dcore + row * rank * columns;
        for (int64_t i = 0; i < rank; i++)
            for (int64_t j = 0; j < columns; j++) {
                double sum = 0;
                const int64_t other = call->core_kind == 1 ? j : i;
                for (int64_t t = start; t < end; t++) sum += (double)g[t * rank + i] * h[t * rank + other];
                sum *= scale;
                put(out + i * columns + j, (A)(call->accumulate ? number(out[i * columns + j]) + sum : sum));
            }
    }

    static void factor(const LowrankCall *call, int which, int64_t row, bool add, int64_t start, int64_t end,
                       int64_t first, int64_t last) {
        const int64_t rank = call->rank, d = which ? call->d_out : call->d_in, whole = call->tokens * rank;
        const void *wide = which ? call->dy : call->x;
        const int64_t stride = which ? call->dy_stride : call->x_stride;
        const A *weights = (const A *)call->scratch + (which ? 2 : 1) * whole;
        const bool stream = call->n_active * rank * d * (int64_t)sizeof(A) > STREAM_BYTES && end - start <= BLOCK;
        A *out[LOWRANK_MAX_RANK];
        const S *v[BLOCK];
        A *into = (A *)(which ? call->db : call->da) + row * rank * d;
        for (int64_t r = 0; r < rank; r++) out[r] = into + r * d;
        if (start == end && !add)
            for (int64_t r = 0; r < rank; r++) std::memset(out[r] + first, 0, (last - first) * sizeof(A));
        for (int64_t at = start; at < end; at += BLOCK, add = true) {
            const int64_t n = end - at < BLOCK ? end - at : BLOCK;
            rows_at(call, wide, stride, at, n, v);
            combine<A, S>(out, add ? (const A *const *)out : nullptr, rank, {weights + at * rank, 1, rank}, v, n, first,
                       last, stream && !add);
        }
    }

    static void absent(const LowrankCall *call, int64_t user) {
        const int64_t rank = call->rank, core = call->core_kind == 1 ? rank * rank : rank;
        if (call->da && call->a_stride) std::memset((A *)call->da + user * rank * call->d_in, 0, rank * call->d_in * sizeof(A));
        if (call->db && call->b_stride) std::memset((A *)call->db + user * rank * call->d_out, 0, rank * call->d_out * sizeof(A));
        if (call->dcore) std::memset((S *)call->dcore + user * core, 0, core * sizeof(S));
        if (call->dscale) ((A *)call->dscale)[user] = 0;
    }

    static void fence() {
#if defined(__SSE2__)
        _mm_sfence();
#endif
    }

    static constexpr LowrankKernels table = {plain, forward, backward, narrow, factor, absent, fence};
};

const LowrankKernels tables[] = {Kernels<float>::table, Kernels<double>::table, Kernels<bfloat16>::table};

} // namespace

// LOWRANK_KERNELS is a name of its own for every instruction set.
extern "C" const LowrankKernels *LOWRANK_KERNELS(void) { return tables; }
